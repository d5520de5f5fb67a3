"""Published architectures: imported, trained with LoRA on both sides, resumed, divided among processes, merged."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.golden.installed.conftest import CASES, Pair
from vlm.checkpoint.run_folder import RunDir, read_checkpoint
from vlm.cli.main import main
from vlm.inference.architectures.against import GREEDY, image
from vlm.inference.engine import Engine

CHOSEN = ("idefics3", "qwen2_vl", "instructblip")
"""Split images with tiles, native sizes with positions of three axes, a bridge that reads the question."""
ENTRY = Path(__file__).parents[2] / "equivalence" / "train_tiny.py"


def imported(pair: Pair, folder: Path) -> Path:
    """The composition of ``vlm import``, and six records with images of different sizes."""
    file = folder / "imported.yaml"
    assert main(["import", str(pair.folder), "--to", str(file)]) == 0
    rng, records = random.Random(3), []
    for number in range(6):
        Image.fromarray(image(rng, (40, 120))).save(folder / f"{number}.png")
        records.append({"image": f"{number}.png", "question": "what is " + "it " * number, "answer": f"no {number}"})
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    return file


def options(folder: Path, name: str, batch_size: int = 2, **run: Any) -> list[str]:
    """``--options`` of a short run."""
    where = f"build_info: {{ann_path: {folder / 'records.jsonl'}, image_path: {folder}}}"
    numbers = {
        "max_steps": 4,
        "save_freq": 2,
        "log_freq": 1,
        "num_workers": 0,
        "init_lr": 0.01,
        "warmup_steps": 0,
        "device": "cpu",
        "report": "false",
        "amp": "false",
        "trackers": "[jsonl]",
        "output_dir": folder / name,
    }
    return [
        f"datasets={{mine: {{format: table, batch_size: {batch_size}, {where}}}}}",
        *(f"model.{side}.lora={{r: 2, dropout: 0.0, targets: all-linear}}" for side in ("llm", "vision")),
        "model.train={bridge.*: true, llm.lora: true, vision.lora: true}",
        *(f"run.{key}={value}" for key, value in (numbers | run).items()),
    ]


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


FEW = pytest.mark.parametrize("pair", [c for c in CASES if c.name in CHOSEN], ids=lambda case: case.name, indirect=True)


@FEW
def test_resumed_is_straight_through_and_merged_is_unmerged(pair: Pair, tmp_path: Path) -> None:
    file = imported(pair, tmp_path)
    packing = {"packing": "{max_tokens: 300, open_rows: 2}"}
    assert main(["train", str(file), "--options", *options(tmp_path, "straight", **packing)]) == 0
    middle = tmp_path / "straight" / "checkpoints" / "step_00000002"
    again = options(tmp_path, "resumed", resume_ckpt_path=middle, **packing)
    assert main(["train", str(file), "--options", *again]) == 0
    one, two = (read_checkpoint(RunDir(tmp_path / name).last())[0] for name in ("straight", "resumed"))
    assert one.keys() == two.keys()
    assert all(any(name.startswith(side) and "lora" in name for name in one) for side in ("llm", "vision"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert losses(tmp_path / "straight")[2:] == losses(tmp_path / "resumed")

    assert main(["weights", "export", str(tmp_path / "straight"), "--to", "hf", str(tmp_path / "merged")]) == 0
    trained, merged = Engine.load(tmp_path / "straight", "cpu"), Engine.load(tmp_path / "merged", "cpu")
    asked = pair.conversations
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    with torch.no_grad():
        logits = [e.model(e.batch(e.examples(asked)), return_logits=True).logits for e in (trained, merged)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    assert trained.generate_ids(asked, GREEDY, stops=()) == merged.generate_ids(asked, GREEDY, stops=())


@pytest.mark.heavy
@FEW
def test_two_processes_are_one(pair: Pair, tmp_path: Path) -> None:
    file = imported(pair, tmp_path)
    file.write_text(file.read_text().replace("dropout: 0.1", "dropout: 0.0"))  # ranks draw different masks
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ENTRY)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(file), *options(tmp_path, "two", 1)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert main(["train", str(file), "--options", *options(tmp_path, "one", 2)]) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = (load_file(RunDir(tmp_path / name).last() / "model.safetensors") for name in ("one", "two"))
    apart = [name for name in one if not torch.allclose(one[name], two[name], atol=1e-4)]
    assert all(name.endswith("key.bias") for name in apart), apart  # gradients that are rounding, which Adam enlarges
