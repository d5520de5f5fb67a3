"""Files of the world, in the layouts that the corpora use: web shards, LLaVA JSON, evaluation JSONL."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vlm.common.paths import make_folder
from vlm.datasets.synthetic.language import QUESTION_TYPES, Question, ask, caption, dialogue
from vlm.datasets.synthetic.render import render
from vlm.datasets.synthetic.scene import COLORS, COLUMNS, DEFAULT_MIX, LETTERS, ROWS, SHAPES, SIZES, Scene, scene_at

_ANSWERS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "letter": LETTERS,
    "position": tuple(f"{row} {column}" for row in ROWS for column in COLUMNS),
    "size": SIZES,
    "exist": ("yes", "no"),
    "bind": ("yes", "no"),
}
_TRIES = 400


def png(image: Image.Image) -> bytes:
    """The image as PNG bytes (fast compression)."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_caption_shards(
    folder: Path,
    count: int,
    seed: int,
    *,
    per_shard: int = 1000,
    mix: tuple[float, float, float] = DEFAULT_MIX,
) -> list[Path]:
    """Write stage-1 web shards ``00000.tar``, ... with members ``KEY.png`` and ``KEY.json`` (``{"caption": ...}``).

    Args:
        folder: made if missing.
        count: number of images.
        seed: another seed gives other images.

    Returns:
        The shards, in order.
    """
    import webdataset

    make_folder(folder)
    shards = []
    for start in range(0, count, per_shard):
        shards.append(folder / f"{start // per_shard:05d}.tar")
        with webdataset.TarWriter(str(shards[-1]), mtime=0) as tar:
            for index in range(start, min(count, start + per_shard)):
                scene = scene_at(seed, index, split="captions", mix=mix)
                text = json.dumps({"caption": caption(scene)}).encode()
                tar.write({"__key__": f"{index:08d}", "png": png(render(scene)), "json": text})
    return shards


def write_dialogues(
    folder: Path,
    count: int,
    seed: int,
    *,
    turns: int = 4,
    mix: tuple[float, float, float] = DEFAULT_MIX,
) -> Path:
    """Write stage-2 dialogues: ``dialogues.json`` in the LLaVA layout, and ``images/``.

    Returns:
        The JSON file; its ``image`` values are relative to ``folder / "images"``.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        scene = scene_at(seed, index, split="dialogues", mix=mix)
        name = f"{index:08d}.png"
        (images / name).write_bytes(png(render(scene)))
        conversation = []
        for turn, question in enumerate(dialogue(scene, np.random.default_rng((*scene.key, 2)), turns)):
            placeholder = "<image>\n" if turn == 0 else ""
            conversation.append({"from": "human", "value": placeholder + question.text})
            conversation.append({"from": "gpt", "value": question.answer})
        rows.append({"id": f"{index:08d}", "image": name, "conversations": conversation})
    path = folder / "dialogues.json"
    path.write_text(json.dumps(rows))
    return path


def _wanted(kind: str, turn: int) -> tuple[str | None, bool | None]:
    """The answer that the ``turn``-th question of a type should have, so that answers come out balanced."""
    if kind == "count":
        return None, None
    answer = _ANSWERS[kind][turn % len(_ANSWERS[kind])]
    return answer, answer == "yes" if kind in ("exist", "bind") else None


def balanced_questions(
    count: int,
    seed: int,
    *,
    split: str = "seen",
    objects: Sequence[int] = (1, 2),
    types: Sequence[str] = QUESTION_TYPES,
) -> list[tuple[Scene, Question]]:
    """Draw one question for each of ``count`` scenes: types in turn, the answers of each type in turn.

    Args:
        split: ``seen``, or ``unseen``, where every question is about a held-out pair (or its scene, for ``no``).
        objects: numbers of things, in turn.
    """
    rows: list[tuple[Scene, Question]] = []
    index = 0
    for number in range(count):
        kind, turn = types[number % len(types)], number // len(types)
        answer, yes = _wanted(kind, turn)
        # Every answer meets every number of things: the numbers move on once all answers have had their turn.
        cycle = len(_ANSWERS.get(kind, (None,)))
        things = objects[(turn // cycle) % len(objects)]
        mix = (float(things == 1), float(things == 2), float(things == 3))
        fallback = None
        for _ in range(_TRIES):
            scene = scene_at(seed, index, split=split, mix=mix)
            index += 1
            rng = np.random.default_rng((*scene.key, 3))
            question = ask(scene, kind, rng, yes=yes, only_unseen=split == "unseen")
            if question is not None:
                fallback = (scene, question)
                if answer in (None, question.answer):
                    break
        if fallback is not None:
            rows.append(fallback)
    return rows


def write_questions(
    folder: Path,
    count: int,
    seed: int,
    *,
    split: str = "seen",
    objects: Sequence[int] = (1, 2),
    types: Sequence[str] = QUESTION_TYPES,
    name: str | None = None,
) -> Path:
    """Write an evaluation set: ``<name>.jsonl`` and ``images/<name>/``, one image for each question.

    Rows: ``{"id", "image", "question", "answer", "type", "objects", "unseen_pair"}``; ``image`` is relative to
    ``folder``.

    Returns:
        The JSONL file, named after the split unless ``name`` is given.
    """
    name = name or split
    images = folder / "images" / name
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (scene, question) in enumerate(
        balanced_questions(count, seed, split=split, objects=objects, types=types)
    ):
        file = images / f"{number:06d}.png"
        file.write_bytes(png(render(scene)))
        row = {
            "id": f"{name}-{number:06d}",
            "image": file.relative_to(folder).as_posix(),
            "question": question.text,
            "answer": question.answer,
            "type": question.type,
            "objects": len(scene.things),
            "unseen_pair": question.unseen,
        }
        lines.append(json.dumps(row))
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
