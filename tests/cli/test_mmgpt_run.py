"""A run of Multimodal-GPT: trained from the shipped composition, resumed, answered with, exported, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vlm.checkpoint.load import load_model
from vlm.checkpoint.safe import read_tensors
from vlm.cli.main import main
from vlm.common.types import Image, Message, Text
from vlm.config.api import load_config
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT
from vlm.runners.train.run import run_training

from ..golden.helpers_mmgpt import MmgptCase

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGES = GOLDEN / "minigpt4" / "open" / "data" / "cc_sbu_align"


@pytest.fixture
def case() -> MmgptCase:
    torch.set_num_threads(1)
    return MmgptCase(GOLDEN / "mmgpt" / "open")


def train(case: MmgptCase, folder: Path, steps: int, model: dict[str, Any] | None = None, **run: Any) -> Path:
    """The run folder after ``steps`` steps."""
    composition = {**case.composition().resolved["model"], **(model or {})}
    data = {"mine": {"format": "caption_folder", "build_info": {"storage": str(IMAGES)}, "batch_size": 2}}
    run |= {"task": "image_text_pretrain", "max_steps": steps, "iters_per_epoch": 4, "init_lr": 0.01, "num_workers": 0}
    run |= {"device": "cpu", "trackers": [], "report": False, "output_dir": str(folder / "run")}
    run |= {"weight_decay_on": ["inserts"], "save_freq": 2, "max_grad_norm": 1.0, "lr_sched": "constant"}
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump({"model": composition, "datasets": data, "run": run}))
    run_training(load_config(file))
    return folder / "run"


def answer(engine: Engine) -> list[str]:
    image = Image(str(GOLDEN / "mmgpt" / "open" / "images" / "second.png"))
    asked = [[Message("user", (image, Text("What is it?")))], [Message("user", (Text("Name a planet."),))]]
    return engine.generate(asked, CHAT.replace(do_sample=False, max_new_tokens=8, cleanup="raw"))


def test_run_goes_out_and_comes_back(case: MmgptCase, tmp_path: Path) -> None:
    run = train(case, tmp_path, 4)
    held = read_tensors(run / "last" / "model.safetensors")
    assert len(held) == 52
    assert all(".lora_" in name for name in held)
    tuned = Engine.load(run, "cpu")
    start = load_model(case.composition(), device="cpu").state_dict()
    after = tuned.model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in start.items() if ".lora_" not in n)
    assert all(not torch.equal(after[n], start[n]) for n in held)
    file = tmp_path / "lora.pt"
    assert main(["weights", "export", str(run), "--to", str(file), "--format", "mmgpt"]) == 0
    again = load_model(case.composition(lora=str(file)), device="cpu")
    assert all(torch.equal(again.state_dict()[n], t) for n, t in after.items())
    assert answer(Engine(again, case.processor)) == answer(tuned)


@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": "torch"}, {"augment": True}])
def test_resumed_run_equals_a_straight_one(case: MmgptCase, tmp_path: Path, changes: dict[str, Any]) -> None:
    model = {
        "fusion": {"name": "cross_attn", "image_token_id": case.image, "placement_augmentation": "augment" in changes}
    }
    options = {k: v for k, v in changes.items() if k != "augment"}
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    straight = train(case, tmp_path / "straight", 4, model, **options)
    train(case, tmp_path / "stopped", 2, model, **options)
    resumed = train(case, tmp_path / "stopped", 4, model, resume="auto", **options)
    want = read_tensors(straight / "last" / "model.safetensors")
    got = read_tensors(resumed / "last" / "model.safetensors")
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
