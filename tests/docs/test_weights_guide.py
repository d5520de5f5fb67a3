"""The commands of docs/guides/weights.md, run on tiny models where it says real ones."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlm.cli.main import main

from ..checkpoint.original_llama import SENTENCEPIECE, tensors, write_ranks, write_shards
from ..equivalence.tiny import Tiny

sys.path.insert(0, str(Path(__file__).parent))
from pages import ROOT, blocks  # noqa: E402

LINES = [
    line
    for block in blocks((ROOT / "docs" / "guides" / "weights.md").read_text(encoding="utf-8"), "bash")
    for line in block.splitlines()
    if "minigpt4/" not in line and not line.startswith("vlm weights merge --")  # these need models of full size
    if line != "vlm weights status"  # tests/cli/test_weights_status.py
]


def adapter(folder: Path) -> None:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(2, 32), name.format("B"): torch.ones(32, 2)},
        folder / "adapter_model.safetensors",
    )


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("llama/7B", "llama-2-7b-chat"):
        write_shards(tmp_path / name, tensors(512), 2)
    for name in ("llama", "llama-2"):
        (tmp_path / name).mkdir(exist_ok=True)
        shutil.copyfile(SENTENCEPIECE, tmp_path / name / "tokenizer.model")
    third = write_shards(tmp_path / "Meta-Llama-3-8B" / "original", tensors(524), 1, rope_theta=500000.0)
    write_ranks(third / "tokenizer.model")
    for name in ("chinese-llama-plus-lora-7b", "chinese-alpaca-plus-lora-7b"):
        adapter(tmp_path / name)
    Tiny(tmp_path).train("output/mine", report=True, report_samples=0, max_steps=1, warmup_steps=0, trackers="[jsonl]")
    missing = {"vlm weights status minigpt4"}
    assert len(LINES) == 10
    for line in LINES:
        if "apply-delta" in line:
            shutil.copytree(tmp_path / "models" / "llama-7b", tmp_path / "models" / "vicuna-7b-delta-v0")
        words = shlex.split(line.replace("/models/", f"{tmp_path}/models/"))
        assert main(words[1:]) == (1 if line in missing else 0), f"{line}\n{capsys.readouterr().err}"
    assert "context 8192" in capsys.readouterr().out
