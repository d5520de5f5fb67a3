"""An engine from a YAML file and from a run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from vlm.checkpoint.run_folder import RunDir
from vlm.common.errors import UserError
from vlm.common.types import Image, Message, Text
from vlm.config.api import load_config
from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION
from vlm.inference.load import find_source

from .small import CASE, write_config

ASKED = [Message("user", (Image(str(CASE / "image.png")), Text("What is in the image?")))]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def test_yaml_file_gives_the_published_answer(config: Path) -> None:
    turn = json.loads((CASE / "case.json").read_text())["records"]["chat"]["turns"][0]
    engine = Engine.load(config)
    greedy = EVALUATION.replace(max_new_tokens=16, repetition_penalty=1.05)
    assert engine.generate([ASKED], greedy) == [turn["answer_after_cleanup"]]
    again = Engine.load(engine.config)
    assert again.generate([ASKED], greedy) == [turn["answer_after_cleanup"]]


def test_options_reach_the_configuration(config: Path) -> None:
    engine = Engine.load(config, options=["model.template.style=2023-04"])
    assert engine.processor.template.open_turn == "Assistant:"


def test_run_folder_needs_nothing_else(config: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.pth"
    shutil.copy(CASE / "checkpoint.pth", start)
    text = config.read_text().replace(str(CASE / "checkpoint.pth"), str(start))
    config.write_text(text)
    trained = Engine.load(config)
    with torch.no_grad():
        trained.model.bridge[1].proj.weight.mul_(-1)
    run = RunDir(tmp_path / "run")
    run.prepare()
    tensors = {n: p.detach().clone() for n, p in trained.model.named_parameters() if p.requires_grad}
    run.save(1, tensors, {}, {}, yaml.safe_dump(load_config(config).resolved))
    before = Engine.load(config).generate([ASKED], EVALUATION)
    start.unlink()  # what the run started from may be gone
    for source in (run.path, run.path / "last", run.folder(1)):
        engine = Engine.load(source)
        assert engine.generate([ASKED], EVALUATION) == trained.generate([ASKED], EVALUATION) != before


def test_nothing_to_load_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint there"):
        Engine.load(tmp_path)
    with pytest.raises(UserError, match=r"absent\.yaml"):
        Engine.load(tmp_path / "absent.yaml")


def test_each_source_is_recognised_by_itself(config: Path, tmp_path: Path) -> None:
    golden = CASE.parents[1]
    folders = golden / "visualcla" / "open"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    expected = {
        config: None,
        tmp_path: None,
        tmp_path / "run": "RunFolder",
        folders / "merged_model": "MergedFolder",
        folders / "lora_model": "AdapterFolder",
        golden.parents[1] / "eval_configs" / "published" / "LYNX.yaml": "LynxFile",
    }
    found = {path: find_source(path) for path in expected}
    assert {path: None if kind is None else type(kind).__name__ for path, kind in found.items()} == expected
