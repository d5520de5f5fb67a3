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
        "vocab_size": 640, "rope_theta": 10000.0,
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


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal updates for the matrices of the blocks, AdamW for everything else.

    Small attention circuits (find a word, copy its neighbour) form in far fewer steps than with AdamW alone.
    """

    def __init__(self, module: torch.nn.Module, ratio: float = 4.0, decay: float = 0.1) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        inner = [p for name, p in named if p.ndim == 2 and "embed" not in name and "head" not in name]
        chosen = {id(p) for p in inner}
        outer = [p for _, p in named if id(p) not in chosen]
        self.adam = torch.optim.AdamW(outer, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
        super().__init__(inner, {"lr": 0.0, "ratio": ratio, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update; the learning rate is AdamW's, the matrices' is ``ratio`` times that."""
        group = self.param_groups[0]
        self.adam.param_groups[0]["lr"] = group["lr"]
        self.adam.step()
        shapes: dict[torch.Size, list[torch.Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                shapes.setdefault(p.shape, []).append(p)
        rate = group["lr"] * group["ratio"]
        for shape, parameters in shapes.items():
            steps = []
            for p in parameters:
                state = self.state[p]
                moment = state.setdefault("moment", torch.zeros_like(p))
                moment.lerp_(p.grad, 0.05)
                steps.append(p.grad.lerp(moment, 0.95))
            for p, change in zip(parameters, orthogonal(torch.stack(steps)), strict=True):
                p.mul_(1 - rate * group["decay"])
                p.add_(change, alpha=-rate * max(1.0, shape[0] / shape[1]) ** 0.5)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients."""
        super().zero_grad(set_to_none)
        self.adam.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Both optimisers' states."""
        return {"muon": super().state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up both states."""
        super().load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def orthogonal(matrices: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Nearly orthogonal matrices ``[n, a, b]`` by Newton-Schulz iteration (coefficients of Muon, K. Jordan 2024)."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if wide else x.mT


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
    groups = [*optimizer.param_groups, *(optimizer.adam.param_groups if isinstance(optimizer, Muon) else [])]
    torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], clip)
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
