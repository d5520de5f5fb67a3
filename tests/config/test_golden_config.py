"""The merge of the published code: every value of run, model and datasets is the same here.

Runs on every case folder with ``framework/config_merge.json`` below ``<golden root>/minigpt4``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm.config.api import Config, load_config


@pytest.fixture
def loaded(
    golden_cases: Callable[[str], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Config, dict[str, Any]]]:
    found = []
    for case in golden_cases("minigpt4"):
        record = case / "framework" / "config_merge.json"
        if record.is_file():
            said = json.loads(record.read_text())
            argv = said["argv"]
            options = argv[argv.index("--options") + 1 :] if "--options" in argv else []
            monkeypatch.chdir(case)
            found.append((load_config(argv[argv.index("--cfg-path") + 1], options, check="all"), said["merged"]))
    assert found, "no case holds framework/config_merge.json"
    return found


def test_run_section(loaded: list[tuple[Config, dict[str, Any]]]) -> None:
    for cfg, merged in loaded:
        mine = dataclasses.asdict(cfg.run)
        assert {k: mine[k] for k in merged["run"]} == merged["run"]


def test_model_section(loaded: list[tuple[Config, dict[str, Any]]]) -> None:
    for cfg, merged in loaded:
        mine = {"arch": cfg.model.arch, "model_type": cfg.model.model_type, **cfg.model.params}
        assert {k: mine[k] for k in merged["model"]} == merged["model"]


def test_dataset_sections(loaded: list[tuple[Config, dict[str, Any]]]) -> None:
    for cfg, merged in loaded:
        assert set(cfg.datasets) == set(merged["datasets"])
        for name, said in merged["datasets"].items():
            entry = cfg.datasets[name]
            mine = {**{k: getattr(entry, k) for k in said if k != "build_info"}, "build_info": entry.format.raw}
            assert {k: mine[k] for k in said} == said
