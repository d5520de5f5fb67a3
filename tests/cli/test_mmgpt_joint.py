"""Joint training of Multimodal-GPT from its shipped file: both streams, killed and resumed, in two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vlm.checkpoint.safe import read_tensors
from vlm.config.api import load_config
from vlm.runners.train.run import run_training
from vlm.runners.train.trackers import read_log

from ..golden.helpers_mmgpt import MmgptCase

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
CASE = TESTS / "golden" / "mmgpt" / "open"
SHIPPED = TESTS.parent / "train_configs" / "mmgpt_finetune.yaml"
NOTES, IMAGES = CASE / "datasets" / "annotations", CASE / "datasets" / "images"
FILES: dict[str, tuple[str, str]] = {
    "mmgpt_llava": ("llava_detail.json", "coco/train2017"),
    "mmgpt_llava_dial": ("llava_conv.json", "coco/train2017"),
    "mmgpt_aokvqa": ("aokvqa.json", "coco"),
    "mmgpt_minigpt4": ("filter_cap.json", "cc_sbu_align/image"),
    "mmgpt_coco_caption": ("coco_caption.json", "coco"),
    "mmgpt_ocr_vqa": ("ocr_vqa.json", "OCR_VQA/image"),
    "mmgpt_dolly": ("dolly.jsonl", ""),
    "mmgpt_alpaca_gpt4": ("alpaca_gpt4.json", ""),
    "mmgpt_baize": ("baize.json", ""),
}


class Joint:
    """Runs of the shipped file at the size of the recorded case, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "joint.yaml"
        self.started: list[subprocess.Popen[str]] = []
        content = yaml.safe_load(SHIPPED.read_text())
        content["model"] = MmgptCase(CASE).composition().resolved["model"]
        for name, (notes, images) in FILES.items():
            where: dict[str, Any] = {"ann_path": [str(NOTES / notes)]}
            if images:
                where["image_path"] = str(IMAGES / images)
            content["datasets"][name]["build_info"] |= where
        content["run"] |= {"amp": False, "device": "cpu", "num_workers": 0, "trackers": ["jsonl"], "report": False}
        content["run"] |= {"log_freq": 1, "accum_grad_iters": 2, "init_lr": 0.005, "warmup_steps": 1}
        self.file.write_text(yaml.safe_dump(content, sort_keys=False))

    def options(self, name: str, **changes: Any) -> list[str]:
        return [f"run.output_dir={self.folder / name}", *(f"run.{k}={v}" for k, v in changes.items())]

    def train(self, name: str, *more: str, **changes: Any) -> Any:
        return run_training(load_config(self.file, [*self.options(name, **changes), *more]))

    def start(self, name: str, *more: str, processes: int = 0, **changes: Any) -> subprocess.Popen[str]:
        """Start training in another process, or under torchrun in several."""
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(several if processes else []), str(TESTS / "equivalence" / "train_tiny.py")]
        env = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        options = [str(self.file), *self.options(name, **changes), *more]
        self.started.append(subprocess.Popen([*command, *options], env=env, stderr=subprocess.PIPE, text=True))
        return self.started[-1]

    def stop(self) -> None:
        """End what still runs; torchrun ends its processes."""
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=60)

    def records(self, name: str) -> list[dict[str, Any]]:
        return [r for r in read_log(self.folder / name / "log.jsonl") if r["kind"] == "train"]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return read_tensors(self.folder / name / "last" / "model.safetensors")


@pytest.fixture
def joint(tmp_path: Path) -> Iterator[Joint]:
    torch.set_num_threads(1)
    made = Joint(tmp_path)
    yield made
    made.stop()


def test_loss_falls_on_both_streams(joint: Joint) -> None:
    result = joint.train("run", max_steps=40, lr_sched="constant", init_lr=0.02)
    records = joint.records("run")
    assert result.step == 40 and all(r["samples"] == 4 for r in records)
    for name in ("loss_vision", "loss_language"):
        first, last = (sum(r[name] for r in part) / 8 for part in (records[:8], records[-8:]))
        assert last < 0.7 * first, name
    assert all(r["loss"] == pytest.approx(r["loss_vision"] + r["loss_language"]) for r in records)
    counts = {n: records[-1][f"data/{n}/samples"] for n in FILES}
    text = sum(counts[n] for n in ("mmgpt_dolly", "mmgpt_alpaca_gpt4", "mmgpt_baize"))
    assert text == 80 and sum(counts.values()) == 160 and all(counts.values())
    assert all(".lora_" in name for name in joint.weights("run"))


def test_an_epoch_is_a_pass_over_the_images(joint: Joint) -> None:
    records = sum(
        len(yaml.safe_load((NOTES / FILES[n][0]).read_text())) for n in FILES if FILES[n][1] and "mini" not in n
    )
    annotations = len(yaml.safe_load((NOTES / "filter_cap.json").read_text())["annotations"])
    assert joint.train("run").step == (records + annotations) // 2


def test_killed_and_resumed_is_the_same(joint: Joint) -> None:
    numbers = {"max_steps": 24, "save_freq": 3}
    process = joint.start("killed", **numbers)
    joint.train("straight", **numbers)
    end = time.monotonic() + 120
    while len(joint.records("killed")) < 7 and time.monotonic() < end:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 7 <= len(joint.records("killed")) < 24
    joint.train("killed", resume="auto", **numbers)
    keys = ("step", "loss", "loss_vision", "loss_language", "grad_norm", "lr", "targets")
    one, two = ([[r[k] for k in keys] for r in joint.records(name)] for name in ("straight", "killed"))
    assert one == two and len(one) == 24
    want, got = joint.weights("straight"), joint.weights("killed")
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


@pytest.mark.parametrize("mode", [pytest.param("joint", marks=pytest.mark.heavy), "sample"])
def test_two_processes_equal_one(joint: Joint, mode: str) -> None:
    """Also where one process has text and the other images at the same time."""
    ratios = [f"datasets.{name}.sample_ratio=1" for name in FILES] if mode == "sample" else []
    how = [*ratios, f"run.mixing={mode}", f"run.loss_reduction={'groups' if mode == 'joint' else 'tokens'}"]
    numbers = {"max_steps": 6, "save_freq": 6, "log_freq": 6}
    process = joint.start("two", *how, "run.batch_size=1", processes=2, **numbers)
    joint.train("one", *how, "run.batch_size=2", **numbers)
    _, errors = process.communicate(timeout=480)
    assert process.returncode == 0, errors
    one, two = joint.records("one"), joint.records("two")
    assert len(one) == len(two) == 6
    assert [(r["targets"], r["samples"]) for r in one] == [(r["targets"], r["samples"]) for r in two]
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-5)
    assert [r["grad_norm"] for r in two] == pytest.approx([r["grad_norm"] for r in one], rel=1e-4)
    want = joint.weights("one")
    assert all(torch.allclose(t, want[k], atol=1e-4) for k, t in joint.weights("two").items())


def test_a_dataset_without_a_group_is_told_before_anything_is_loaded(joint: Joint) -> None:
    from vlm.common.errors import ConfigError

    with pytest.raises(ConfigError, match=r"found joint, but datasets\.mmgpt_baize\.group is not set"):
        load_config(joint.file, ["datasets.mmgpt_baize.group=''"])
    with pytest.raises(ConfigError, match=r"group language: mmgpt_dolly, mmgpt_alpaca_gpt4 without sample_ratio"):
        joint.train("run", "datasets.mmgpt_baize.sample_ratio=2", max_steps=1)
