"""Keys of earlier versions in files, options and stored runs."""

from __future__ import annotations

import logging

import pytest

from vlm.config.api import load_config
from vlm.config.renamed import RENAMED

TEMPLATE = {"name": "plain", "cut_at": ["#"]}


def test_an_old_key_is_read_as_the_new_one_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = {"llm": {"name": "hf", "path": "x"}, "template": TEMPLATE}
    with caplog.at_level(logging.WARNING, "vlm"):
        cfg = load_config({"model": model, "run": {"mixing": "joint", "loss_mean": "groups"}}, check="none")
    assert cfg.model.template.config.truncate_at == ["#"] and cfg.run.loss_reduction == "groups"
    assert [r.getMessage().split(";")[0] for r in caplog.records] == [
        "model.template.cut_at is called truncate_at now",
        "run.loss_mean is called loss_reduction now",
    ]
    assert (
        "cut_at" not in str(cfg.resolved)
        and load_config(cfg.resolved, check="none").model.template.config == cfg.model.template.config
    )


def test_an_option_under_the_old_name_wins_over_the_file() -> None:
    model = {"llm": {"name": "hf", "path": "x"}, "template": {"name": "plain", "truncate_at": ["a"]}}
    cfg = load_config({"model": model}, ["model.template.cut_at=[b]"], check="none")
    assert cfg.model.template.config.truncate_at == ["b"]


@pytest.mark.parametrize("old", RENAMED)
def test_new_names_are_not_old_ones(old: tuple[str, ...]) -> None:
    assert (*old[:-1], RENAMED[old]) not in RENAMED
