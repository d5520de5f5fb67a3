"""``@register_optimizer("name")``: functions that make the optimiser of a run."""

from __future__ import annotations

from typing import Any

import torch

from vlm.common import dist
from vlm.common.registry import register_optimizer


@register_optimizer("adamw")
def adamw(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], device: torch.device) -> Any:
    """torch's AdamW, eps 1e-8, fused where that is faster."""
    fused = dist.supports_fused_optimizer(device)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=fused or None)
