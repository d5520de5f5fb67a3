"""RMS norms of any family in one call of torch, for answers, where the result has the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OneCallNorm:
    """Replaces the ``forward`` of an RMS norm: one call of torch without gradients, else as it was."""

    def __init__(self, norm: nn.Module, forward: Callable[[Tensor], Tensor], eps: float) -> None:
        self.norm = norm
        self.forward = forward
        self.eps = eps

    def __call__(self, hidden: Tensor) -> Tensor:
        """``[..., d]`` -> ``[..., d]``."""
        weight: Any = self.norm.weight
        if torch.is_grad_enabled() or hidden.dtype is not torch.float32 or weight.dtype is not torch.float32:
            return self.forward(hidden)
        return F.rms_norm(hidden, weight.shape, weight, self.eps)


def shorten_norms(model: nn.Module) -> int:
    """Let the RMS norms of ``model`` take one call of torch where that gives the same bits on random tokens.

    A module is tried if it has one parameter, a vector ``weight`` in float32, and an attribute for what is added to
    the mean square. Returns how many are replaced; a second call replaces none.
    """
    count = 0
    for module in model.modules():
        eps = next((vars(module)[name] for name in ("variance_epsilon", "eps") if name in vars(module)), None)
        known = isinstance(vars(module).get("forward"), OneCallNorm)
        if not known and isinstance(eps, float) and _is_alike(module, eps):
            module.__dict__["forward"] = OneCallNorm(module, module.forward, eps)
            count += 1
    return count


def _is_alike(module: nn.Module, eps: float) -> bool:
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    if len(parameters) != 1 or weight is None or weight.dim() != 1 or weight.dtype is not torch.float32:
        return False
    tokens = torch.randn(1, 3, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device)
    try:
        with torch.no_grad():
            found = module(tokens)
            return isinstance(found, Tensor) and torch.equal(found, F.rms_norm(tokens, weight.shape, weight, eps))
    except (RuntimeError, TypeError, ValueError):  # a norm that takes more than that
        return False
