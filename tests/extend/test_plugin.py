"""A package outside the tree adds a bridge, a dataset format and a task by decorator and trains from a YAML."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

PARTS = '''
from dataclasses import dataclass
import json
from pathlib import Path

from torch import nn

from vlm.common.registry import register_bridge, register_dataset, register_task
from vlm.common.types import Features, Image, Message, Sample, Text
from vlm.tasks.base import Task


@register_bridge("gated_linear")
class GatedLinear(nn.Module):
    @dataclass
    class Config:
        gain: float = 1.0

    def __init__(self, config, in_dim, llm_dim):
        super().__init__()
        self.config, self.out_dim = config, llm_dim
        self.value, self.gate = nn.Linear(in_dim, llm_dim), nn.Linear(in_dim, llm_dim)

    def num_tokens(self, in_tokens):
        return in_tokens

    def forward(self, features):
        x = features.tokens
        return Features(self.config.gain * self.value(x) * self.gate(x).sigmoid(), features.mask)


@register_dataset("name_tags")
class NameTags:
    """{"file": "a.png", "tag": "red"} -> image, "red"."""

    @dataclass
    class Config:
        index: str = ""

    def __init__(self, config):
        self.folder = Path(config.index).parent
        self.rows = json.loads(Path(config.index).read_text())

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        row = self.rows[i]
        user = Message("user", (Image(self.folder / row["file"]),))
        return Sample((user, Message("assistant", (Text(row["tag"]),))), id=row["file"], source="name_tags")


@register_task("loud_pretrain")
class LoudPretrain(Task):
    def train_step(self, model, batch):
        Path("task_was_here").touch()
        return model(batch)
'''

CONFIG = """
plugins: [acme_parts.parts]
model:
  vision: {name: timm, model: vit_tiny_patch16_224, image_size: 32, options: {depth: 1, embed_dim: 24, num_heads: 2}}
  bridge: [{name: gated_linear, gain: 0.5}]
  fusion: {name: splice}
  llm:
    name: hf
    path: LLM
  template: {name: plain}
  image: {size: 32}
  train: ["bridge.*"]
  weights:
    - {format: hf_llm, path: LLM, into: llm}
    - {format: random, into: vision}
datasets:
  tags:
    format: name_tags
    build_info: {index: data/index.json}
    batch_size: 2
run:
  task: loud_pretrain
  lr_sched: constant
  init_lr: 1.0e-3
  max_steps: 2
  log_freq: 1
  num_workers: 0
  device: cpu
  output_dir: out
"""


@pytest.mark.slow
def test_parts_from_another_package_train_two_steps(tmp_path: Path) -> None:
    package = tmp_path / "site" / "acme_parts"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "parts.py").write_text(PARTS)
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for i, color in enumerate(["red", "green", "blue", "white"]):
        Image.new("RGB", (40, 30), color).save(data / f"{i}.png")
        rows.append({"file": f"{i}.png", "tag": color})
    (data / "index.json").write_text(json.dumps(rows))
    llm = ROOT / "tests" / "golden" / "minigpt4" / "open" / "llm"
    (tmp_path / "run.yaml").write_text(CONFIG.replace("LLM", str(llm)))

    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--cfg-path", "run.yaml"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "task_was_here").exists()
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line.get("split", "train") == "train" and "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert (tmp_path / "out" / "last" / "model.safetensors").exists()
