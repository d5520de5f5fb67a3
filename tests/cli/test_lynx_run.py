"""A run of Lynx: trained on images and videos from the shipped composition, resumed, exported, loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vlm.checkpoint.safe import read_tensors
from vlm.cli.main import main
from vlm.common.types import Image, Message, Text, Video
from vlm.config.api import load_config
from vlm.inference.engine import Engine
from vlm.runners.train.run import run_training

from ..golden.helpers_lynx import KINDS, LynxCase

OPEN = Path(__file__).parents[1] / "golden" / "lynx" / "open"


@pytest.fixture
def case() -> LynxCase:
    torch.set_num_threads(1)
    return LynxCase(OPEN)


def train(case: LynxCase, folder: Path, steps: int, kinds: tuple[str, ...] = KINDS, **run: Any) -> Path:
    """The run folder after ``steps`` steps."""
    folder.mkdir(exist_ok=True)
    data = {}
    for kind in kinds:
        info = {"ann_path": str(OPEN / f"{kind}s.jsonl"), "image_path": str(OPEN)}
        data[kind] = {"format": "table", "build_info": info, "batch_size": 2}
    run |= {"task": "image_text_pretrain", "max_steps": steps, "iters_per_epoch": 4, "init_lr": 0.01, "num_workers": 0}
    run |= {"device": "cpu", "report": False, "output_dir": str(folder / "run"), "save_freq": 2, "lr_sched": "constant"}
    model = case.shipped(frame_sampling="segments").resolved["model"]
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump({"model": model, "datasets": data, "run": {"trackers": ["jsonl"]} | run}))
    run_training(load_config(file))
    return folder / "run"


def answers(engine: Engine) -> list[str]:
    asked = [
        [Message("user", (Image(str(OPEN / "images" / "img_0.png")), Text("What color is the bus?")))],
        [Message("user", (Video(str(OPEN / "images" / "video_0.json")), Text("What happens?")))],
        [Message("user", (Text("Name a planet."),))],
    ]
    return engine.generate(asked, engine.default_generation().replace(max_new_tokens=6))


@pytest.mark.parametrize("kind", KINDS)
def test_first_step_has_the_published_loss(case: LynxCase, tmp_path: Path, kind: str) -> None:
    """From annotation files to the recorded number: loader, template, recipes, model and loss together."""
    run = train(case, tmp_path, 1, (kind,))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first = next(line["loss"] for line in lines if "loss" in line)
    assert first == pytest.approx(case.records["train"][f"train_{kind}"]["loss"], abs=1e-5)


def test_run_goes_out_and_comes_back(case: LynxCase, tmp_path: Path) -> None:
    run = train(case, tmp_path, 4, mixing="sample", activation_checkpointing="torch")
    held = read_tensors(run / "last" / "model.safetensors")
    trained = {n for n, p in case.model.named_parameters() if p.requires_grad}
    assert set(held) == trained
    assert all(not torch.equal(held[n], case.model.state_dict()[n]) for n in held if n.endswith("weight"))
    assert not torch.equal(held["bridge.0.positions"], case.model.state_dict()["bridge.0.positions"])
    tuned = Engine.load(run, "cpu")
    assert all(torch.equal(tuned.model.state_dict()[n], t) for n, t in held.items())
    file = tmp_path / "tuned.pt"
    assert main(["weights", "export", str(run), "--to", str(file), "--format", "lynx"]) == 0
    again = Engine.load(case.shipped(checkpoint=str(file), frame_sampling="segments"), "cpu")
    assert all(torch.equal(again.model.state_dict()[n], t) for n, t in held.items())
    tower = {n: t for n, t in tuned.model.state_dict().items() if n.startswith("vision.")}
    again.model.load_state_dict({**again.model.state_dict(), **tower})  # that of the case came with its checkpoint
    assert answers(again) == answers(tuned)


def test_resumed_run_equals_a_straight_one(case: LynxCase, tmp_path: Path) -> None:
    straight = train(case, tmp_path / "straight", 4)
    train(case, tmp_path / "stopped", 2)
    resumed = train(case, tmp_path / "stopped", 4, resume="auto")
    want = read_tensors(straight / "last" / "model.safetensors")
    got = read_tensors(resumed / "last" / "model.safetensors")
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
