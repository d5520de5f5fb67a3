"""``@register_optimizer("name")``: functions that make the optimiser of a run.

They get the groups (a list of ``{params, weight_decay, lr_scale}``, see :func:`~vlm.runners.train.optim.grouped`), the
peak learning rate, the betas and the device. The optimiser's ``state_dict`` must hold only tensors and plain values.
"""

from __future__ import annotations

from typing import Any

import torch

from vlm.common import dist
from vlm.common.registry import register_optimizer
from vlm.runners.train.adamw_8bit import AdamW8bit


@register_optimizer("adamw")
def adamw(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], device: torch.device) -> Any:
    """torch's AdamW, eps 1e-8; in one kernel for all parameters where torch has one."""
    fused = dist.supports_fused_optimizer(device)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=fused or None)


@register_optimizer("adamw_8bit")
def adamw_8bit(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], device: torch.device) -> Any:
    """AdamW, eps 1e-8, with states in 8 bits: 2 bytes for each value that trains instead of 8, on any device."""
    return AdamW8bit(groups, lr=lr, betas=betas, eps=1e-8)
