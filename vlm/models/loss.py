"""Token loss at the supervised positions only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlm.models.precision import device_kind

CPU_ELEMENTS, OTHER_ELEMENTS = 2**22, 2**27
"""Logits computed at a time by :class:`HeadLoss`: as many as fit a CPU's cache, or fill an accelerator."""


class HeadLoss(torch.autograd.Function):
    """Summed cross entropy of ``hidden @ weight.T + bias``.

    The gradients are computed together with the loss, a few rows at a time: neither the logits ``[t, vocab]`` nor their
    gradient are ever held in memory as a whole. torch has ``linear_cross_entropy`` from 2.13 on, which smooths no
    labels and was measured to be slower on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """``hidden [t, d]``, ``weight [vocab, d]``, ``bias [vocab]``, ``targets [t]`` -> scalar float32 sum."""
        kind = hidden.device.type
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        total = hidden.new_zeros((), dtype=torch.float32)
        used = weight.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype)
        grad = torch.empty_like(hidden) if needs_hidden else None
        by_weight = torch.zeros_like(weight) if needs_weight else None
        by_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        with torch.autocast(kind, enabled=False):
            for rows in _parts(len(hidden), len(weight), device_kind(hidden)):
                some = hidden[rows].to(used.dtype)
                logits = F.linear(some, used, None if bias is None else bias.to(used.dtype)).float()
                loss, slope = _cross_entropy(logits, targets[rows, None], smoothing, any(ctx.needs_input_grad[:3]))
                total += loss
                if slope is None:
                    continue
                if by_bias is not None:
                    by_bias += slope.sum(0)
                slope = slope.to(used.dtype)
                if grad is not None:
                    grad[rows] = (slope @ used).to(grad.dtype)
                if by_weight is not None and by_weight.dtype is used.dtype:
                    by_weight.addmm_(slope.T, some)
                elif by_weight is not None:
                    by_weight += slope.T @ some
        ctx.gradients = (grad, by_weight, by_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the stored gradients, in place: that of a head that trains is as large as the head."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss have been used: run the forward pass again")
        return *(None if g is None else g.mul_(upstream) for g in gradients), None, None


def _parts(count: int, vocab: int, kind: str) -> list[slice]:
    """Slices of about equal length that cover ``count`` rows: a short one is computed more slowly for its size."""
    most = (CPU_ELEMENTS if kind == "cpu" else OTHER_ELEMENTS) / vocab
    parts = max(1, min(count, round(count / most)))
    return [slice(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


def _cross_entropy(
    logits: Tensor, expected: Tensor, smoothing: float, with_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum over the rows of ``logits [t, vocab]``, and its gradient; ``expected [t, 1]``."""
    vocab = logits.shape[1]
    p = None
    if with_slope:
        p = logits.softmax(1)
        norm = logits.amax(1, keepdim=True) - p.amax(1, keepdim=True).log()  # logsumexp, in fewer passes
    else:
        norm = logits.logsumexp(1, keepdim=True)
    loss = (1 - smoothing) * (norm - logits.gather(1, expected)).sum()
    if smoothing:
        loss = loss + smoothing * (norm.sum() - logits.sum() / vocab)
    if p is not None:
        p.scatter_add_(1, expected, p.new_full(expected.shape, smoothing - 1.0))
        p = p.sub_(smoothing / vocab) if smoothing else p
    return loss, p


def head_loss(head: Any, hidden: Tensor, targets: Tensor, *, plain: bool, smoothing: float = 0.0) -> Tensor:
    """Summed cross entropy in float32.

    Args:
        head: hidden states ``[t, d]`` -> logits ``[t, vocab]``; an ``nn.Linear`` when ``plain``.
        hidden: ``[t, d]``.
        targets: ``[t]`` ids.
        plain: the head is one linear layer, trained or frozen, for which :class:`HeadLoss` is exact.
        smoothing: share of each target's weight that is spread over the vocabulary.
    """
    if plain:
        loss: Tensor = HeadLoss.apply(hidden, head.weight, head.bias, targets, smoothing)
        return loss
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum", label_smoothing=smoothing)
