"""Text files that users wrote, wherever they are read: UTF-8 with or without BOM, cut at line feeds only."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import UserError
from vlm.common.text import lines_of, read_lines, read_text
from vlm.config.tree import parse_file
from vlm.datasets.base import read_json
from vlm.datasets.formats.table.read import read_rows
from vlm.datasets.formats.table.templates import read_pool
from vlm.datasets.loading.quarantine import Quarantine
from vlm.datasets.loading.sources import BadRecord
from vlm.inference.few_shot import read_examples
from vlm.pages.compare import read_predictions
from vlm.processors.templates.base import read_lines as read_prompts
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.runners.train.trackers import read_log
from vlm.serve.gradio.examples import read_page_examples

WORDS = "image: 这是图片的说明 café"
STRANGE = "a\x85b\u2028c\u2029d\x0be\x0cf\x1cg"
"""What ``str.splitlines`` takes for ends of lines."""


def as_yaml(file: Path) -> Any:
    return parse_file(file).data


def as_tokenizer(file: Path) -> Any:
    return Tokenizer.from_folder(file.parent)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "configuration": ("a.yaml", as_yaml),
    "pool": ("a.txt", lambda file: read_pool(str(file))),
    "prompt_path": ("a.txt", lambda file: read_prompts(str(file))),
    "shots": ("a.jsonl", read_examples),
    "examples": ("a.jsonl", read_page_examples),
    "predictions": ("a.jsonl", read_predictions),
    "predictions.json": ("a.json", read_predictions),
    "records.json": ("a.json", lambda file: read_rows(str(file))),
    "records.jsonl": ("a.jsonl", lambda file: read_rows(str(file))),
    "records.csv": ("a.csv", lambda file: read_rows(str(file))),
    "records.tsv": ("a.tsv", lambda file: read_rows(str(file))),
    "annotations": ("a.json", lambda file: read_json(file, "x")),
    "tokenizer": ("tokenizer.json", as_tokenizer),
}


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "utf-16-le", "utf-32", "latin-1"])
@pytest.mark.parametrize("reader", READERS)
def test_another_encoding_is_named_with_its_line(reader: str, encoding: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    file = tmp_path / name
    text = "# first\n# second " + (WORDS if encoding != "latin-1" else "café") + "\n"
    file.write_bytes(text.replace("é", "é" if encoding != "gbk" else "e").encode(encoding))
    with pytest.raises(UserError, match="not a text file in UTF-8") as caught:
        read(file)
    place = "seems to be UTF-16" if encoding.startswith("utf") else ", line 2: byte 0x"
    assert f"{name} cannot be read (not" in str(caught.value) and place in str(caught.value)
    assert "save it as UTF-8" in str(caught.value)


def test_bom_crlf_and_tabs_are_read(tmp_path: Path) -> None:
    def file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        return path

    yaml = "run:\t# a comment\n\t\n  name:\t图\t# another\n\t# one more\n  seed: 1\t\n  trackers: [a,\n\tb\t]\n"
    assert as_yaml(file("a.yaml", yaml)) == {"run": {"name": "图", "seed": 1, "trackers": ["a", "b"]}}
    pool = file("a.txt", "one\n\ttwo\n\n  \nthree")
    assert read_pool(str(pool)) == read_prompts(str(pool)) == ["one", "\ttwo", "three"]
    shots = file("a.jsonl", '{"question": "q", "answer": "a"}\n')
    assert [m.text for m in read_examples(shots)] == ["q", "a"]
    assert read_json(shots, "x") == [{"question": "q", "answer": "a"}]
    assert read_text(pool).startswith("one\n")


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    assert lines_of(f"{STRANGE}\nx\r\n\ny") == [STRANGE, "x", "", "y"] and lines_of("") == []
    line = json.dumps({"question": STRANGE, "answer": STRANGE}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    texts = [m.text for m in read_examples(tmp_path / "a.jsonl")]
    assert texts == [STRANGE] * 4
    assert len(read_predictions(tmp_path / "a.jsonl").records) == len(read_rows(str(tmp_path / "a.jsonl")).records) == 2
    page = json.dumps({"question": STRANGE, "image": "a.jsonl"}, ensure_ascii=False)
    (tmp_path / "page.jsonl").write_text(page, encoding="utf-8")
    assert read_page_examples(tmp_path / "page.jsonl")[0][1] == STRANGE
    assert read_log(tmp_path / "a.jsonl")[1]["answer"] == STRANGE


def test_a_quarantine_with_strange_names_is_continued(tmp_path: Path) -> None:
    bad = BadRecord("mine", f"{STRANGE}.jpg", f"no such file {STRANGE}")
    Quarantine(tmp_path, 1.0).add("mine", 9, [bad])
    Quarantine(tmp_path, 1.0).add("mine", 9, [bad])
    assert (tmp_path / "quarantine.jsonl").read_text("utf-8").count("\n") == 1
    (tmp_path / "quarantine.jsonl").write_bytes(b'\xff broken\n{"source": "a", "key": "b", "reason": "c"}\n')
    Quarantine(tmp_path, 1.0)


def test_control_characters_of_a_pool(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\x07\n")
    for read in (read_pool, read_prompts):
        with pytest.raises(UserError, match=r"a\.txt:2: control character U\+0007"):
            read(str(tmp_path / "a.txt"))


def test_what_is_not_a_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "pipe", "not a file"),
        (Path("/dev/zero"), "not a file"),
        (tmp_path / "x", "no such"),
    ):
        for read in (read_text, lambda p: read_lines(p, "x"), as_yaml):
            with pytest.raises(UserError, match=words):
                read(path)
    (tmp_path / "big").write_bytes(b" " * 11)
    with pytest.raises(UserError, match="11 bytes, allowed are 10"):
        read_text(tmp_path / "big", max_bytes=10)


def test_messages_show_control_characters_instead_of_sending_them() -> None:
    assert str(UserError("a\x00b\x1b[2J\x85.jpg\n\tc\ud800")) == "a\\x00b\\x1b[2J\\x85.jpg\n\tc\\ud800"
