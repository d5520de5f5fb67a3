"""The run section: nested options and options that exclude each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm.common.errors import ConfigError
from vlm.config.api import Config, effective, load_config
from vlm.config.run import Packing
from vlm.config.tree import to_yaml

MINI = "model: {arch: minigpt4, model_type: pretrain_vicuna0, llama_model: /llm}\n"


def load(run: str, tmp_path: Path, *options: str) -> Config:
    file = tmp_path / "cfg.yaml"
    file.write_text(f"{MINI}run: {run}\n")
    return load_config(file, options, check="none")


def test_packing_is_off_by_default_and_survives_storing(tmp_path: Path) -> None:
    assert load("{}", tmp_path).run.packing is None
    cfg = load("{packing: {max_tokens: 2048}}", tmp_path, "run.packing.max_media=8", "run.batch_size=2")
    assert cfg.run.packing == Packing(max_tokens=2048, max_media=8, open_rows=32)
    assert effective(cfg)["run"]["packing"]["max_tokens"] == 2048
    (tmp_path / "stored.yaml").write_text(to_yaml(cfg.resolved))
    assert load_config(tmp_path / "stored.yaml", check="none").run == cfg.run


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("{packing: {max_media: 3}}", r"run\.packing\.max_tokens.*missing; expected an integer"),
        ("{packing: {max_tokens: 0}}", r"run\.packing\.max_tokens.*found 0 .*an integer of at least 1"),
        ("{packing: {max_tokens: 9, max_medai: 1}}", "did you mean 'max_media'"),
        ("{packing: {max_tokens: 9}, group_by_length: 2}", "packing and group_by_length are two ways"),
        ("{group_by_length: -1}", r"run\.group_by_length.*found -1 .*an integer of at least 0"),
        ("{mixing: samples}", "run.mixing.*expected one of 'batch', 'sample'"),
        ("{batch_size: 4}", "batch_size has no effect with mixing: batch.*datasets.NAME.batch_size"),
        ("{batch_size: 0, mixing: sample}", r"run\.batch_size.*found 0 .*an integer from 1 to 1000000"),
    ],
)
def test_faults(run: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(run, tmp_path)
