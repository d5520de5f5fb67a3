"""Computing without numbers: parameters, pixels and activations are fake, the structure of a batch is real.

A fake tensor has a shape and a dtype but no memory. What depends on values (lengths, segments, masks, positions) is
computed with real integers on the CPU, so that a step takes the way that it takes in the run. Every operation is
counted: the memory of its results while they live, FLOPs, bytes moved.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten: Any = torch.ops.aten

MADE = {
    aten.empty, aten.empty_strided, aten.zeros, aten.ones, aten.full, aten.rand, aten.randn, aten.normal,
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.new_zeros, aten.new_empty,
    aten.new_ones, aten.new_full, aten.new_empty_strided,
}  # fmt: skip
"""Operations that allocate without reading values; their floating-point results are fake."""
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._unsafe_index_put)
GRAIN = 512
"""Bytes to which an allocator rounds a tensor."""


@dataclass
class Work:
    """What operations did: FLOPs and bytes, and for each precision what a roofline needs."""

    flops: float = 0.0
    moved: float = 0.0  # bytes read and written
    steps: int = 0  # operations
    by_kind: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, dtype: str, flops: float, moved: float) -> None:
        """Count one operation."""
        self.flops += flops
        self.moved += moved
        self.steps += 1
        self.by_kind[dtype].append((flops, moved))


class Memory:
    """Bytes that live, by category, and the largest total of each phase.

    Attributes:
        phase: name of what is being computed.
        category: what new memory belongs to.
        peaks: phase -> bytes of each category at the moment when the phase held most.
    """

    def __init__(self) -> None:
        self.phase, self.category = "", "activations"
        self.live: Counter[str] = Counter()
        self.peaks: dict[str, Counter[str]] = {}
        self._known: dict[int, tuple[Any, str, int]] = {}

    def enter(self, phase: str, category: str | None = None) -> None:
        """From now on ``phase`` is computed."""
        self.phase = phase
        self.category = category or self.category
        self._look()

    def add(self, tensor: Tensor) -> None:
        """Note the memory of ``tensor``, unless it is known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // GRAIN) * GRAIN
        self._known[key] = (weakref.ref(storage, lambda _: self._gone(key)), self.category, size)
        self.live[self.category] += size
        self._look()

    def ignore(self, tensor: Tensor) -> None:
        """``tensor`` is counted elsewhere."""
        storage = tensor.untyped_storage()
        self._known.setdefault(storage._cdata, (storage, "", 0))

    def move(self, tensor: Tensor, category: str) -> None:
        """The memory of ``tensor`` belongs to ``category`` from now on."""
        key = tensor.untyped_storage()._cdata
        reference, before, size = self._known.get(key, (None, "", 0))
        if reference is not None and size:
            self.live[before] -= size
            self.live[category] += size
            self._known[key] = (reference, category, size)

    def _gone(self, key: int) -> None:
        _, category, size = self._known.pop(key, (None, "", 0))
        self.live[category] -= size

    def _look(self) -> None:
        if self.phase and self.live.total() > self.peaks.get(self.phase, Counter()).total():
            self.peaks[self.phase] = Counter(self.live)
        elif self.phase:
            self.peaks.setdefault(self.phase, Counter(self.live))


class Faking(TorchDispatchMode):
    """Within it, floating-point tensors are made without memory; see the module's text.

    Attributes:
        memory: what lives; None: not counted.
        work: FLOPs and bytes; None: not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.memory: Memory | None = None
        self.work: Work | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation without numbers, or for real where all it reads is real."""
        kwargs = kwargs or {}
        out = self._run(func, args, kwargs)
        if self.memory is not None or self.work is not None:
            self._count(func, args, kwargs, out)
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        packet = func.overloadpacket
        if any(isinstance(x, FakeTensor) for x in tensors):
            if packet is aten._local_scalar_dense:
                return 1.0 if args[0].is_floating_point() else args[0].dtype is torch.bool or 1
            if packet in INDEXED:
                args = (args[0], _places(args[1]), *args[2:])
            return func(*args, **kwargs)
        if packet in MADE and _is_float(packet, tensors, args, kwargs):
            with self.fake:
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        results = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        if self.memory is not None:
            for result in results:
                self.memory.add(result)
        if self.work is None or func.is_view or not any(isinstance(x, FakeTensor) for x in results):
            return
        read = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        moved = sum(x.numel() * x.element_size() for x in (*read, *results))
        formula = flop_registry.get(func.overloadpacket)
        flops = float(formula(*args, **kwargs, out_val=out)) if formula else 0.0
        kinds = [x.dtype for x in (*read, *results) if x.is_floating_point()]
        self.work.add(str(kinds[0]).removeprefix("torch.") if kinds else "int", flops, float(moved))

    def to_fake(self, tensor: Tensor) -> Tensor:
        """The fake of a real tensor."""
        return tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor)

    def adopt(self, model: nn.Module) -> None:
        """Move ``model`` from the meta device to a CPU without numbers; ties are kept."""
        known: dict[int, Any] = {}
        for module in model.modules():
            for store in (module._parameters, module._buffers):
                for name, value in store.items():
                    if value is not None and id(value) not in known:
                        known[id(value)] = self._moved(value)
                    store[name] = None if value is None else known[id(value)]

    def _moved(self, value: Tensor) -> Any:
        with self.fake:
            made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
        if not isinstance(value, nn.Parameter):
            return made
        made.requires_grad_(value.requires_grad)
        return nn.Parameter(made, requires_grad=value.requires_grad)


@contextlib.contextmanager
def counting(faking: Faking, memory: Memory | None, work: Work | None) -> Iterator[None]:
    """Within the block, operations are counted."""
    before = faking.memory, faking.work
    faking.memory, faking.work = memory, work
    try:
        yield
    finally:
        faking.memory, faking.work = before


def _is_float(packet: Any, tensors: list[Tensor], args: Any, kwargs: dict[str, Any]) -> bool:
    if packet is aten.full and kwargs.get("dtype") is None:
        return isinstance(args[1], float)
    dtype = kwargs.get("dtype") or (tensors[0].dtype if tensors else torch.get_default_dtype())
    return bool(dtype.is_floating_point)


def _places(index: Any) -> list[Any]:
    """An index of real masks as one of numbers, whose count is known."""
    result: list[Any] = []
    for part in index:
        masks = (
            isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) and not isinstance(part, FakeTensor)
        )
        result += part.nonzero().unbind(1) if masks else [part]
    return result


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""FLOPs of operations that torch's table lacks."""
for _packet, _formula in FORMULAS.items():
    flop_registry.setdefault(_packet, _formula)
