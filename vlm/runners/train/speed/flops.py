"""FLOPs of training steps: counted on some of them, scaled to the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vlm.common.types import Batch, Features
from vlm.models.vlm import VLM

NEAR = 1.5
"""A step is scaled from one that is up to so many times as large."""
MOST = 8
"""Steps that are counted in a run; then the nearest is scaled."""


@dataclass(frozen=True)
class Size:
    """What the FLOPs of a step grow with."""

    tokens: int  # text positions without padding
    pixels: int  # numbers in the images

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Size:
        """Of the micro-batches of a step, on the host."""
        pixels = [0 if b.pixels is None else b.pixels.numel() for b in batches]
        return cls(sum(int((b.segments > 0).sum()) for b in batches), sum(pixels))

    def distance(self, other: Size) -> float:
        """By which factor the two differ at most; infinite if one has images and the other has none."""
        pairs = ((self.tokens, other.tokens), (self.pixels, other.pixels))
        return max(1.0 if a == b else max(a, b) / min(a, b) if a and b else float("inf") for a, b in pairs)


@dataclass(frozen=True)
class Count:
    """A counted step: the FLOPs of :meth:`VLM.encode` without its backward pass, and all others."""

    size: Size
    visual: int
    rest: int
    visual_tokens: int  # that the encoder gave; the language model reads them, too

    def scaled(self, size: Size) -> float:
        """FLOPs of a step of ``size``: the encoder's by its pixels, the others by all positions."""
        images = size.pixels / self.size.pixels if self.size.pixels else 0.0
        positions = (size.tokens + images * self.visual_tokens) / max(self.size.tokens + self.visual_tokens, 1)
        return self.visual * images + self.rest * positions


class FlopCounts:
    """The counted steps of a run.

    Args:
        model: the unwrapped model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.known: list[Count] = []

    def of(self, batches: Sequence[Batch]) -> float | None:
        """FLOPs of this process in a step; None if none has been counted."""
        size = Size.of(batches)
        nearest = min(self.known, key=lambda count: count.size.distance(size), default=None)
        return None if nearest is None else nearest.scaled(size)

    @contextlib.contextmanager
    def counting(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Around a step: counts it if none of about its size has been counted. Its results have the same bits."""
        size = Size.of(batches)
        near = any(count.size.distance(size) <= NEAR for count in self.known)
        if near or len(self.known) >= MOST:
            yield
            return
        counter = Counter()
        with counter, _watched(self.model, counter) as seen:
            yield
        self.known.append(Count(size, seen.flops, counter.flops - seen.flops, seen.tokens))


class Counter(TorchDispatchMode):
    """Adds up the FLOPs of what is computed, by the formulas of torch's ``FlopCounterMode``.

    That mode itself takes operations apart, which changes the last bits of a step, and follows every module.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.formulas = FlopCounterMode(display=False, custom_mapping=_cpu_attention()).flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute as ever."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = self.formulas.get(func.overloadpacket) if isinstance(func, OpOverload) else None
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


@dataclass
class _Seen:
    flops: int = 0
    tokens: int = 0


@contextlib.contextmanager
def _watched(model: nn.Module, counter: Counter) -> Iterator[_Seen]:
    """Within the block, what ``model.encode`` costs and gives is added up."""
    seen = _Seen()
    if not isinstance(model, VLM) or "encode" in vars(model):
        yield seen
        return
    encode = model.encode

    def watched(*args: Any, **kwargs: Any) -> Features:
        before = counter.flops
        found = encode(*args, **kwargs)
        seen.flops += counter.flops - before
        seen.tokens += found.tokens.shape[:-1].numel()
        return found

    model.__dict__["encode"] = watched
    try:
        yield seen
    finally:
        del model.__dict__["encode"]


def _cpu_attention() -> dict[Any, Any]:
    """Formulas for torch's fused attention on a CPU, which its counter leaves out; of each call's shapes."""

    def forward(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
        batch, heads, length, width = query
        return 2 * batch * heads * length * key[2] * (width + value[3])

    def backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
        batch, heads, length, width = query
        return 2 * batch * heads * length * key[2] * (3 * width + 2 * value[3])

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
