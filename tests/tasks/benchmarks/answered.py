"""Files of answers, recorded scripts and small images for the tests of benchmarks."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image as Images

from vlm.common.registry import resolve
from vlm.tasks.benchmarks.standard.base import StandardOptions
from vlm.tasks.benchmarks.standard.stored import score_file

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> Any:
    """Inputs and numbers of official scripts; ``source`` in the file says which."""
    return json.loads((RECORDED / f"{name}.json").read_text())


def written(path: Path, lines: list[dict]) -> Path:
    """A file of JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def said(folder: Path, answers: dict[str, str]) -> str:
    """The answers in a file."""
    return str(written(folder / "said.jsonl", [{"id": k, "answer": v} for k, v in answers.items()]))


def numbers(benchmark: str, data: Path, answers: dict[str, str], **options: Any) -> Any:
    """The scores of answers by id; an empty answer is one like others here."""
    folder = data if data.is_dir() else data.parent
    options = {"empty": "wrong", **options}
    kind: Any = resolve("benchmark", benchmark)
    return score_file(kind, str(data), "", [said(folder, answers)], StandardOptions(**options)).scores


def png(colour: int = 0) -> bytes:
    """A small image."""
    file = io.BytesIO()
    Images.new("RGB", (8, 8), (colour % 256, 100, 50)).save(file, "PNG")
    return file.getvalue()


def base64_png(colour: int = 0) -> str:
    """The same in base64."""
    return base64.b64encode(png(colour)).decode()
