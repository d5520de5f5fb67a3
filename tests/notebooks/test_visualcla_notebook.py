"""The notebook runs from top to bottom on a tiny model; it is committed without outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "visualcla_inference.ipynb"
OPEN = ROOT / "tests" / "golden" / "visualcla" / "open"


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return notebook["cells"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_it_holds_no_outputs() -> None:
    for cell in cells():
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse(source(cell))


@pytest.mark.heavy
def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    paths = {name.upper(): str(OPEN / name) for name in ("text_model", "vision_model", "lora_model")}
    paths |= {"MERGED_MODEL": str(tmp_path / "merged"), "IMAGE": str(OPEN / "image.png")}
    space: dict[str, Any] = {}
    for cell in (c for c in cells() if c["cell_type"] == "code"):
        exec(compile(source(cell), NOTEBOOK.name, "exec"), space)
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(paths) == {name for name in space if name.isupper()}
            space |= paths
    assert space["model"].generate_ids  # an engine
    assert [turn["type"] for turn in space["history"]] == ["instruction", "response"] * 2
    out = capsys.readouterr().out
    assert space["again"][0] in out and "chat page: http://127.0.0.1:" in out
