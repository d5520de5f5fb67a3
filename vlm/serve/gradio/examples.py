"""Images with questions that a visitor of the chat page can click."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlm.common.errors import DataError
from vlm.inference.few_shot import json_lines

if TYPE_CHECKING:
    from vlm.config.api import Config

Example = tuple[str, str]
"""Path of an image, and a question about it."""

WORLD_QUESTIONS = ("describe", "color", "shape", "position", "count", "letter", "size", "exist")


def is_tiny_model(cfg: Config | None) -> bool:
    """Whether a model is the embedded one, which knows drawn shapes and letters only."""
    return cfg is not None and "tiny" in (cfg.model.arch, cfg.model.model_type)


def read_page_examples(file: str | Path) -> list[Example]:
    """Examples of a JSON Lines file with ``{image, question}``; paths start from the file's folder.

    Raises DataError: no such file or image, or a line without one of the fields.
    """
    path = Path(file)
    result: list[Example] = []
    for where, record in json_lines(path, ("image", "question")):
        if not isinstance(record, dict) or not all(isinstance(record.get(k), str) for k in ("image", "question")):
            fix = 'write {"image": "a.jpg", "question": "What is it?"}'
            raise DataError(f"{where}: needs `image` and `question`, both strings", fix=fix)
        image = path.parent / record["image"]
        if not image.is_file():
            raise DataError(f"{where}: image {image}: no such file", fix=f"paths start from {path.parent}")
        result.append((str(image.resolve()), record["question"]))
    return result


def tiny_model_examples(folder: Path, count: int = 8, seed: int = 2024) -> list[Example]:
    """Draw held-out scenes into ``folder``, one question type after another."""
    import numpy as np

    from vlm.datasets.synthetic.language import INSTRUCTIONS, ask
    from vlm.datasets.synthetic.render import render
    from vlm.datasets.synthetic.scene import scene_at

    result: list[Example] = []
    rng = np.random.default_rng(seed)
    for index in range(50 * count):
        if len(result) == count:
            break
        kind = WORLD_QUESTIONS[len(result) % len(WORLD_QUESTIONS)]
        scene = scene_at(seed, index, split="seen", mix=(0.4, 0.6, 0.0))
        asked = None if kind == "describe" else ask(scene, kind, rng)
        question = INSTRUCTIONS[0] if kind == "describe" else asked and asked.text
        if question:
            path = folder / f"{kind}_{len(result)}.png"
            render(scene).save(path)
            result.append((str(path), question))
    return result
