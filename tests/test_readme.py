"""The README tells the truth: it is short, its walk-through runs with the outputs it shows, and so do its snippets.

Its commands, links and those of all other pages are checked in tests/docs.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from vlm.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "docs"))
from pages import blocks  # noqa: E402

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the quickstart has run, in small, and the records that the README copies."""
    place = tmp_path_factory.mktemp("readme")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["quickstart", "--seed", "0", "--scale", "0.04"]) == 0
        data = place / "output" / "quickstart" / "data"
        lines = (data / "seen.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (place / "mine.jsonl").write_text("".join(lines[:20]), encoding="utf-8")
        (place / "mine.yaml").write_text(next(b for b in blocks(TEXT, "yaml") if "# mine.yaml" in b), encoding="utf-8")
        (place / "circle.png").write_bytes(next((data / "images" / "seen").iterdir()).read_bytes())
        yield place


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 180


def expected(line: str) -> re.Pattern[str]:
    """A line of output whose numbers may differ; ``...`` stands for the rest."""
    text = re.sub(r"\d[\d.,e+-]*", "NUMBER", line.rstrip(". ") if line.endswith("...") else line)
    return re.compile(re.escape(text).replace("NUMBER", r"[\d.,e+-]+").replace(r"\ ", r"\s+"))


@pytest.mark.heavy
def test_the_walk_through_gives_what_it_shows(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (console,) = blocks(TEXT, "console")
    steps = re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]
    assert len(steps) == 4
    for step in steps:
        command, *shown = step.strip().splitlines()
        assert main(shlex.split(command)[1:]) == 0, command
        out, err = capfd.readouterr()
        for line in shown:
            wanted = expected(line) if " " in line else re.compile(r"^\w+", re.MULTILINE)
            assert wanted.search(out + err), f"{command} does not print {line!r}:\n{out + err}"


@pytest.mark.heavy
def test_python(folder: Path) -> None:
    """The snippets of the README and of docs/python.md, one after another."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    study = (ROOT / "docs" / "guides" / "study.md").read_text(encoding="utf-8")
    space: dict[str, object] = {}
    for block in [*blocks(TEXT, "python"), *blocks(page, "python"), *blocks(study, "python")]:
        exec(compile(block, "snippet", "exec"), space)
    assert len(space["answers"]) == 3  # type: ignore[arg-type]
    assert (folder / "output" / "from_python" / "last" / "model.safetensors").is_file()


def test_the_composition_is_read() -> None:
    from vlm.config.api import load_config

    config = yaml.safe_load(blocks(TEXT, "yaml")[0])
    config["model"]["llm"]["path"] = str(ROOT / "tests" / "golden" / "minigpt4" / "open" / "llm")
    assert load_config(config, check="none").model.train == {"bridge.*": True}


def test_the_memory_table_is_what_the_compositions_have() -> None:
    from benchmarks.memory_table import MARKER, ROWS, row_text

    start, end = f"<!-- {MARKER} -->", f"<!-- end {MARKER} -->"
    text = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    lines = text[text.index(start) : text.index(end)].strip().splitlines()[3:]
    assert len(lines) == len(ROWS)
    assert lines[-1] == row_text(ROWS[-1]) and lines[5] == row_text(ROWS[5])
