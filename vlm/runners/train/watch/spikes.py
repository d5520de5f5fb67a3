"""Steps whose loss or gradient is far from those before."""

from __future__ import annotations

from typing import Any

from vlm.config.run import SpikeLimits


class SpikeGuard:
    """Judges each step against the last ones; the same on every process, because the numbers are sums over all.

    Args:
        action: ``run.on_spike``: warn, skip or stop.
        limits: how far is far.
    """

    def __init__(self, action: str, limits: SpikeLimits) -> None:
        self.action = action
        self.limits = limits

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """Why this step is a spike, or None; called once per step, before the update. A spike changes no statistics."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, part of every checkpoint, so that a resumed run judges alike."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the statistics of a checkpoint; an empty one starts without."""
