"""``vlm.train`` from a program: sections as keyword arguments, the run folder as the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vlm
from vlm.common.errors import ConfigError
from vlm.config.options import parse_options, write_options

from ..equivalence.tiny import DATA, Tiny


def test_options_are_read_back_as_they_were_written() -> None:
    sections = {
        "run": {
            "init_lr": 1e-5,
            "resume": None,
            "deterministic": True,
            "trackers": ["log"],
            "output_dir": Path("a b"),
            "lr_scale": {"bridge.*": 10},
        },
        "model": {"template": {"begin": "### [INST] "}, "train": {"bridge.*": False}, "bridge": [{"name": "linear"}]},
        "datasets": {"mine": {"build_info": {"prompt": "yes"}}},
    }
    read = {option.path: option.value for option in parse_options(write_options(sections))}
    assert read == {
        ("run", "init_lr"): 1e-5,
        ("run", "resume"): None,
        ("run", "deterministic"): True,
        ("run", "trackers"): ["log"],
        ("run", "output_dir"): "a b",
        ("run", "lr_scale", "bridge.*"): 10,
        ("model", "template", "begin"): "### [INST] ",
        ("model", "train", "bridge.*"): False,
        ("model", "bridge"): [{"name": "linear"}],
        ("datasets", "mine", "build_info", "prompt"): "yes",
    }
    with pytest.raises(ConfigError, match="run.seed: <object"):
        write_options({"run": {"seed": object()}})


def test_train_then_load_then_chat(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    tiny = Tiny(tmp_path)
    result = vlm.train(tiny.config, run={"max_steps": 2, "init_lr": 1e-4, "output_dir": tmp_path / "run"})
    assert isinstance(result, vlm.RunResult) and result.step == 2
    assert result.path.is_relative_to(tmp_path / "run")
    assert vlm.load_config(result.path).run.init_lr == 1e-4
    model = vlm.load(result.path)
    assert isinstance(model.chat("What is it?", image=DATA / "image.png", max_new_tokens=3), str)


def test_unknown_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.init_rl"):
        vlm.train(Tiny(tmp_path).config, run={"init_rl": 1e-4})
