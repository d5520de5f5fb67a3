"""``--options``: both published spellings, types, and text that YAML would read as something else."""

from __future__ import annotations

from typing import Any

import pytest

from vlm.common.errors import ConfigError
from vlm.config.options import apply_options, parse_options
from vlm.config.schema import Report
from vlm.config.tree import Tree, parse_text

TEXTS = [
    "###",
    "[INST] {} [/INST] ",
    "###Human: {} ###Assistant: ",
    "=x",
    "a: b",
    "a # b",
    "- x",
    " lead",
    "trail ",
    "<Img><ImageHere></Img>",
    "&a",
    "*a",
    "!tag",
    "%d",
    "@x",
    "`x`",
    "</s>",
    "12 apples",
    "1e",
    "http://host:80/x?a=b",
    "2023-04-01",
    "[unclosed",
    "{a",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("joined", [True, False])
def test_special_text_survives(text: str, joined: bool) -> None:
    (option,) = parse_options([f"model.end_sym={text}"] if joined else ["model.end_sym", text])
    assert option.path == ("model", "end_sym")
    assert option.value == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1", -1),
        ("0.5", 0.5),
        ("1e-4", 1e-4),
        ("3E5", 3e5),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("[a, 2, true]", ["a", 2, True]),
        ("{r: 4, targets: [q]}", {"r": 4, "targets": ["q"]}),
        ("[]", []),
        ('"###"', "###"),
        ("'3'", "3"),
        ('"[INST] {} [/INST] "', "[INST] {} [/INST] "),
    ],
)
def test_values_are_typed(text: str, value: Any) -> None:
    (option,) = parse_options([f"a.b={text}"])
    assert option.value == value
    assert type(option.value) is type(value)
    assert option.text == text


def test_the_first_item_decides_the_spelling() -> None:
    pairs = parse_options(["a.b", "c=d", "e.f", "2"])
    assert [(o.path, o.value) for o in pairs] == [(("a", "b"), "c=d"), (("e", "f"), 2)]


def test_list_indices_and_globs() -> None:
    options = parse_options(["model.bridge.0.hidden_size=32", "model.train.bridge.1.*=false"])
    assert [o.path for o in options] == [("model", "bridge", 0, "hidden_size"), ("model", "train", "bridge.1.*")]


@pytest.mark.parametrize("items", [["a.b=1", "c"], ["a.b", "1", "c"], ["a..b=1"], ["=1"]])
def test_unusable_items_are_errors(items: list[str]) -> None:
    with pytest.raises(ConfigError, match="--options"):
        parse_options(items)


def applied(yaml: str, *items: str) -> tuple[Tree, Report]:
    tree, report = parse_text(yaml, "f.yaml"), Report()
    apply_options(tree, parse_options(items), report, {("model", "llm"): ""})
    return tree, report


def test_options_change_list_elements_and_merge_mappings() -> None:
    tree, report = applied("model: {bridge: [{name: a, x: 1}, {name: b}], lora: {r: 1, s: 2}}", "model.bridge.0.x=5")
    assert tree.data["model"]["bridge"] == [{"name": "a", "x": 5}, {"name": "b"}]
    tree, report = applied("model: {lora: {r: 1, s: 2}}", "model.lora={r: 3}")
    assert tree.data["model"]["lora"] == {"r": 3, "s": 2}
    assert not report.problems


def test_options_make_missing_mappings_and_keep_numeric_keys_of_mappings() -> None:
    tree, _ = applied("datasets: {'2017': {batch_size: 1}}", "datasets.2017.batch_size=4", "run.seed=1")
    assert tree.data == {"datasets": {"2017": {"batch_size": 4}}, "run": {"seed": 1}}


def test_another_part_name_drops_the_options_of_the_first() -> None:
    tree, _ = applied("model: {llm: {name: hf, path: x}}", "model.llm.name=other", "model.llm.size=2")
    assert tree.data["model"]["llm"] == {"name": "other", "size": 2}


def test_a_way_that_does_not_exist_is_a_problem() -> None:
    _, report = applied("model: {bridge: [{name: a}], x: 3}", "model.bridge.4.x=5", "model.x.y=1")
    assert [p.path for p in report.problems] == ["model.bridge.4.x", "model.x.y"]
    assert "list of 1" in report.problems[0].message
