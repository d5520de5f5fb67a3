"""Runs of one small model that trained nothing but LoRA: one that was trained, and others with further numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm.checkpoint.run_files import CHECKSUMS, write_checksums

from ..equivalence.tiny import Tiny

NORM = "llm.model.model.norm.weight"


def trained_run(folder: Path) -> Path:
    """``a`` below ``folder``; its bridge is random and frozen, and so stored with the run."""
    tiny = Tiny(folder)
    text = tiny.config.read_text().replace('train: ["bridge.1.*", "llm.lora"]', 'train: ["llm.lora"]')
    text = text.replace("- {format: hf_llm", "- {format: random, into: bridge.1}\n    - {format: hf_llm")
    tiny.config.write_text(text)
    tiny.train("a", max_steps=1, save_freq=0, val_freq=0, init_lr=0.3)
    return folder / "a"


def other_run(run: Path, name: str, seed: int, more: dict[str, Tensor] | None = None) -> Path:
    """A run beside ``run`` with other LoRA, and with ``more`` trained parameters."""
    target = run.with_name(name)
    shutil.copytree(run, target, symlinks=True)
    file = target / "last" / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    torch.manual_seed(seed)
    tensors = load_file(file)
    tensors |= {key: torch.randn_like(tensor) for key, tensor in tensors.items() if ".lora_" in key}
    save_file(tensors | (more or {}), file, metadata)
    for config in (target / "config.yaml", target / "last" / "config.yaml"):
        lines = "".join(f"  - {key}\n" for key in ("llm.lora", *(more or ())))
        config.write_text(config.read_text().replace("  - llm.lora\n", lines))
    (target / "last" / CHECKSUMS).unlink()
    write_checksums(target / "last")
    return target
