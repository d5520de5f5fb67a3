"""What the stages share: sizes, schedules, files, the clock."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, dict[str, Any]] = {
    "vision": {
        "image_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 5, "num_heads": 4, "mlp_ratio": 3.0,
    },
    "qformer": {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256,
        "num_query_tokens": 16, "cross_attention_freq": 2,
    },
    "llm": {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 352,
        "vocab_size": 640, "rope_theta": 100.0,
    },
}  # fmt: skip
"""Architecture of the three foundations, as written to ``sizes.json``."""


@dataclass
class Plan:
    """How long the stages train. ``out`` gets the assets, ``work`` the checkpoints that a restart goes on from."""

    out: Path
    work: Path
    seed: int = 0
    scale: float = 1.0
    miniature: bool = False

    def steps(self, full: int, tiny: int) -> int:
        """Number of steps: ``full`` times the scale, or ``tiny`` in miniature."""
        return tiny if self.miniature else max(1, round(full * self.scale))


def learning_rate(step: int, total: int, peak: float, warmup: int, floor: float = 0.01) -> float:
    """Linear warm-up, then a cosine down to ``floor * peak``."""
    warmup = max(1, min(warmup, total // 5))
    if step < warmup:
        return peak * (step + 1) / warmup
    along = (step - warmup) / max(1, total - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, along))))


def make_optimizer(module: torch.nn.Module, decay: float = 0.02) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    wanted = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in wanted if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float, clip: float = 1.0) -> None:
    """One optimiser step at a learning rate, with the gradient norm clipped."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
    optimizer.step()


class Clock:
    """CPU seconds of this process since the start, added to what earlier runs had used."""

    def __init__(self, used: float = 0.0) -> None:
        self._start = time.process_time() - used

    def __call__(self) -> float:
        """Seconds so far."""
        return time.process_time() - self._start


def save_training(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, cpu: float) -> None:
    """Write a checkpoint in one move, so that a stopped run leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "cpu": cpu}, part)
    part.replace(path)


def load_training(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Take up a checkpoint if there is one; steps done and CPU seconds used so far."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["cpu"]


def note_result(work: Path, stage: str, **numbers: Any) -> None:
    """Keep a stage's measured numbers in ``results.json``."""
    path = work / "results.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[stage] = numbers
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=2))


def write_sizes(out: Path) -> None:
    """Write ``sizes.json``, which a model configuration is checked against."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "sizes.json").write_text(json.dumps(SIZES, indent=2) + "\n")
