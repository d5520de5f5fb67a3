"""The guide on studies: its files check, and its table of rates is the one that the studies hold."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from vlm.config.tree import parse_file
from vlm.runners.study.read import build_study

sys.path.insert(0, str(Path(__file__).parent))
from pages import ROOT, blocks  # noqa: E402

TEXT = (ROOT / "docs" / "guides" / "studies.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", range(len(blocks(TEXT, "yaml"))))
def test_its_studies_check(number: int, tmp_path: Path) -> None:
    path = tmp_path / "first.yaml"
    path.write_text(blocks(TEXT, "yaml")[number], encoding="utf-8")
    study = build_study(path, check="none")
    assert study.cells
    shown = [re.search(r"= (\d+) cells, (\d+) runs", block) for block in blocks(TEXT, "console")]
    assert (str(len(study.cells)), str(len({cell.hash for cell in study.cells}))) in [m.groups() for m in shown if m]


def test_the_rates_on_the_page_are_those_of_the_study() -> None:
    """The bold rate of each row is the one that the study uses."""
    axis = parse_file(ROOT / "studies" / "tiny_bridges.yaml").data["axes"]["bridge"]
    head, _, *rows = re.search(r"^\| bridge \| 3e-4 .*(?:\n\|.*)+", TEXT, re.MULTILINE)[0].splitlines()
    columns = [cell.strip() for cell in head.split("|")[2:-1]]
    found = {}
    for row in rows:
        name, *values = [cell.strip() for cell in row.split("|")[1:-1]]
        found[name] = next(float(column) for column, value in zip(columns, values, strict=True) if "**" in value)
    assert found == {name: level["run.init_lr"] for name, level in axis.items()}
