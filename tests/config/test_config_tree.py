"""YAML with the line of every value; merging keeps track of where values came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm.common.errors import ConfigError
from vlm.config.tree import parse_file, parse_text, to_yaml


def test_every_key_and_element_has_its_line() -> None:
    tree = parse_text("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n", "f.yaml")
    assert tree.origins["a", "b"] == "f.yaml:2"
    assert tree.origins["a", "c", 1, "d"] == "f.yaml:5"
    assert tree.data == {"a": {"b": 1, "c": ["x", {"d": 2}]}}


def test_numbers_as_people_write_them_and_dates_as_text() -> None:
    tree = parse_text("{a: 1e-4, b: 3E-5, c: 010, d: 2023-04-01, e: 1_000, f: .5, g: '1e-4'}", "f")
    assert tree.data == {"a": 1e-4, "b": 3e-5, "c": 10, "d": "2023-04-01", "e": "1_000", "f": 0.5, "g": "1e-4"}


def test_anchors_and_merge_keys_work() -> None:
    tree = parse_text("base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\n", "f")
    assert tree.data["more"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3.*'a' is given twice"),
        ("a: [1\nb: 2\n", "f:2: not valid YAML"),
        ("- 1\n", "expected a mapping"),
        ("a: {b: ???}\n", "quotes inside"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
    ],
)
def test_unusable_files_name_the_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_text(text, "f")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        parse_file(tmp_path / "none.yaml")


def test_merge_replaces_lists_and_scalars_and_keeps_origins() -> None:
    base = parse_text("m: {a: 1, l: [1, 2, 3], p: {name: x, o: 1}}\n", "base")
    base.merge(parse_text("m:\n  l: [9]\n  p: {o: 2}\n", "user"))
    assert base.data == {"m": {"a": 1, "l": [9], "p": {"name": "x", "o": 2}}}
    assert base.origins["m", "a"] == "base:1"
    assert base.origins["m", "p", "o"] == "user:3"
    assert ("m", "l", 1) not in base.origins


def test_a_part_of_another_name_replaces_the_whole_part() -> None:
    base = parse_text("p: {name: x, o: 1}", "base")
    base.merge(parse_text("p: {name: y, q: 2}", "user"), (), {("p",): ""})
    assert base.data == {"p": {"name": "y", "q": 2}}


def test_yaml_text_reads_back_the_same() -> None:
    data = {
        "a": "1e-4",
        "b": "###",
        "c": "null",
        "d": 1e-12,
        "e": ["x: y", " "],
        "f": None,
        "g": "é",
        "h": "1e5",
        "i": "\n",
    }
    assert parse_text(to_yaml(data), "f").data == data
