"""Token loss at the supervised positions only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlm.models.precision import device_kind

CPU_ELEMENTS, OTHER_ELEMENTS = 2**22, 2**27
"""Logits computed at a time by :class:`FrozenHeadLoss`: as many as fit a CPU's cache, or fill an accelerator."""


class FrozenHeadLoss(torch.autograd.Function):
    """Summed cross entropy of ``hidden @ weight.T`` for a frozen head.

    The gradient of the hidden states is computed together with the loss, a few rows at a time: neither the logits
    ``[t, vocab]`` nor their gradient are ever held in memory as a whole.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # noqa: ANN001
        """``hidden [t, d]``, ``weight [vocab, d]``, ``targets [t]`` -> scalar float32 sum."""
        kind = hidden.device.type
        step = max(1, (CPU_ELEMENTS if device_kind(hidden) == "cpu" else OTHER_ELEMENTS) // weight.shape[0])
        total = hidden.new_zeros((), dtype=torch.float32)
        weight = weight.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        with torch.autocast(kind, enabled=False):
            for begin in range(0, len(hidden), step):
                rows = slice(begin, begin + step)
                logits = (hidden[rows].to(weight.dtype) @ weight.T).float()
                expected = targets[rows, None]
                norm = logits.logsumexp(1, keepdim=True)
                total += (norm - logits.gather(1, expected)).sum()
                if grad is not None:
                    p = logits.sub_(norm).exp_()
                    p.scatter_add_(1, expected, p.new_full(expected.shape, -1.0))
                    grad[rows] = (p.to(weight.dtype) @ weight).to(grad.dtype)
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, None, None]:  # noqa: ANN001
        """Scale the stored gradient."""
        (grad,) = ctx.saved_tensors
        return (None if grad is None else (grad.float() * upstream).to(grad.dtype)), None, None


def head_loss(head: Any, hidden: Tensor, targets: Tensor, *, plain: bool, smoothing: float = 0.0) -> Tensor:
    """Summed cross entropy in float32.

    Args:
        head: hidden states ``[t, d]`` -> logits ``[t, vocab]``; an ``nn.Linear`` when ``plain``.
        hidden: ``[t, d]``.
        targets: ``[t]`` ids.
        plain: the head is one frozen linear layer without bias, for which :class:`FrozenHeadLoss` is exact.
        smoothing: share of each target's weight that is spread over the vocabulary; not with ``plain``.
    """
    if plain:
        return FrozenHeadLoss.apply(hidden, head.weight, targets)
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum", label_smoothing=smoothing)
