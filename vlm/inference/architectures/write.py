"""The composition of a published folder as a YAML file that people read and change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.config.tree import to_yaml

HEAD = "# Composition of "
"""How every such file begins."""
ABOUT = {
    "vision": "pixels -> visual tokens",
    "bridge": "visual tokens -> tokens of the LLM's width; a list, in order",
    "fusion": "visual tokens and text -> one sequence",
    "llm": "sizes as in the folder's config.json; for LoRA add lora: {r: 16}, and llm.lora: true under train",
    "template": "the text around questions and answers",
    "image": "as the folder's image processor",
    "text": "tokenizer and limits; max_txt_len: 2048 limits training samples",
    "generation": "how it answers, unless a flag or argument says otherwise",
    "train": "a suggestion: globs of parameters that train; all else is frozen",
    "weights": "read one tensor at a time; what a run trained goes on top: {format: trained, path: RUN_FOLDER}",
}
"""Comment of each section."""
DATA = """
# Your records (docs/guides/own_data.md), then: vlm train {file}
# datasets:
#   mine:
#     format: table
#     batch_size: 4
#     build_info: {{ann_path: /data/mine.jsonl, image_path: /data/images}}
"""


def as_text(section: Mapping[str, Any], folder: Path, model_type: str, file: str) -> str:
    """The whole file.

    Args:
        section: ``model:`` as plain data.
        folder: what it was made of.
        model_type: the folder's architecture.
        file: name of the file, for its own comments.
    """
    lines = [f"{HEAD}{_one_line(folder)} ({model_type}), written by `vlm import`.", "model:"]
    for key, value in section.items():
        lines.append(f"  # {ABOUT[key]}" if key in ABOUT else "")
        lines += [f"  {line}".rstrip() for line in to_yaml({key: value}, compact=True).splitlines()]
    run = to_yaml({"run": {"output_dir": f"output/{Path(file).stem}"}})
    return "\n".join(lines) + "\n" + DATA.format(file=_one_line(file)) + run


def _one_line(path: Path | str) -> str:
    """A path for a comment, which ends with its line."""
    return " ".join(str(path).split())


def is_composition(head: str) -> bool:
    """Whether a file that begins so was written by :func:`as_text`."""
    return head.startswith(HEAD)
