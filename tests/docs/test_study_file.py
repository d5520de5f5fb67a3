"""The page about the study file: its tables are those of the classes, its examples are read and give what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guides" / "study_file.md"
TEXT = PAGE.read_text(encoding="utf-8")
YAML = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
sys.path.insert(0, str(ROOT / "docs"))


def test_the_tables_are_those_of_the_classes() -> None:
    from sync_study import synced

    assert synced(TEXT) == TEXT, "run: python docs/sync_study.py"
    assert "| `trials` |" in TEXT and "| `flops` |" in TEXT


@pytest.mark.parametrize(("number", "cells"), [(0, 12), (1, 4), (2, 2)])
def test_the_examples_make_the_cells_that_the_page_lists(number: int, cells: int, tmp_path: Path) -> None:
    from vlm.cli.study.check import lines
    from vlm.runners.study.grid.build import Builder
    from vlm.runners.study.grid.opened import open_file

    file = tmp_path / "study.yaml"
    file.write_text(YAML[number])
    builder = Builder(open_file(file), "none")
    study = builder.study()
    assert len(study.cells) == cells
    if number == 2:
        assert len({cell.runs[0].hash for cell in study.cells}) == 1
    if number == 0:
        shown = TEXT.partition("```text\n")[2].partition("```")[0].splitlines()
        told = [line.replace(str(file), "study.yaml").rstrip() for line in lines(study, builder)]
        hashes = re.compile(r"\b[0-9a-f]{12}\b")
        assert [hashes.sub("HASH", line) for line in told] == [hashes.sub("HASH", line) for line in shown]
