"""One training step of a fake model: the memory of each phase and the work, at few layers and for all."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.types import Batch
from vlm.models.precision import planned_for
from vlm.runners.plan.depth import Stack, cut, stacks_of
from vlm.runners.plan.fake import Memory, Work, counting
from vlm.runners.plan.model import Faked
from vlm.runners.train.step import amp_context
from vlm.tasks.base import Task

Seconds = Callable[[Work], float]
"""Work -> seconds at the limits of a device."""


@dataclass
class Trace:
    """What a micro-batch needs in the forward and backward pass.

    Attributes:
        peaks: phase -> bytes of each category at its peak; weights and optimiser are not among them.
        flops: of the micro-batch.
        seconds: at the device's limits.
        operations: kernels.
    """

    peaks: dict[str, Counter[str]]
    flops: float
    seconds: float
    operations: float

    def plus(self, one: Trace, less: Trace, times: float) -> Trace:
        """This trace with ``times`` the difference of ``one`` and ``less`` added."""
        peaks = {}
        for phase in self.peaks.keys() & one.peaks.keys() & less.peaks.keys():
            kinds = self.peaks[phase].keys() | one.peaks[phase].keys() | less.peaks[phase].keys()
            own, more, base = self.peaks[phase], one.peaks[phase], less.peaks[phase]
            peaks[phase] = Counter({k: max(0, round(own[k] + times * (more[k] - base[k]))) for k in kinds})
        return Trace(
            peaks,
            self.flops + times * (one.flops - less.flops),
            self.seconds + times * (one.seconds - less.seconds),
            self.operations + times * (one.operations - less.operations),
        )


def trace_step(faked: Faked, task: Task, batch: Batch, seconds: Seconds, accumulates: bool) -> Trace:
    """A micro-batch through all layers, found from runs with few of them: costs grow by as much with each layer.

    Args:
        faked: the model.
        task: computes the loss.
        batch: real ids, labels, segments and places of media; the numbers of its pixels do not matter.
        seconds: see :data:`Seconds`.
        accumulates: gradients of earlier micro-batches are there already.
    """
    batch = replace(batch, pixels=None if batch.pixels is None else faked.faking.to_fake(batch.pixels))
    stacks = stacks_of(faked.model)
    cutting = [stack for stack in stacks if stack.cuts]
    few = {stack.name: stack.few for stack in cutting}

    def run(depths: Mapping[str, int]) -> Trace:
        with cut(faked.model, depths, cutting):
            return _run(faked, task, batch, seconds, stacks, accumulates)

    base = run(few)
    result = base
    for stack in cutting:
        more = run({**few, stack.name: stack.few + stack.period})
        result = result.plus(more, base, (stack.depth - stack.few) / stack.period)
    return result


def _run(faked: Faked, task: Task, batch: Batch, seconds: Seconds, stacks: Sequence[Stack], accumulates: bool) -> Trace:
    model, faking, memory, work = faked.model, faked.faking, Memory(), Work()
    for tensor in (*model.parameters(), *model.buffers()):
        memory.ignore(tensor)
    trained = [p for p in model.parameters() if p.requires_grad]
    kind = faked.device.type
    with faking, planned_for(kind), _watched(model, stacks, trained, memory), counting(faking, memory, work):
        memory.enter("batch", "batch")
        _hold(batch, memory)
        if accumulates:
            memory.enter("batch", "gradients")
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        memory.enter("forward", "activations")
        with amp_context(torch.device("cpu"), faked.precision):
            output = task.train_step(model, batch)
        memory.enter("backward of loss", "loss")
        (output.loss_sum * 1.0).backward()
        memory.enter("end", "workspace")
    for parameter in trained:
        parameter.grad = None
    return Trace(memory.peaks, work.flops, seconds(work), work.steps)


def _hold(batch: Batch, memory: Memory) -> None:
    for value in vars(batch).values():
        if isinstance(value, Tensor):
            memory.add(value)


@contextlib.contextmanager
def _watched(model: Any, stacks: Sequence[Stack], trained: list[nn.Parameter], memory: Memory) -> Iterator[None]:
    """Within the block, ``memory`` is told which layer computes, and what are gradients of parameters."""
    handles = [p.register_post_accumulate_grad_hook(lambda p: memory.move(p.grad, "gradients")) for p in trained]
    for stack in stacks:
        handles += _watch_stack(stack, memory, decoder=stack.layers is model.llm.layers())
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch_stack(stack: Stack, memory: Memory, decoder: bool) -> list[Any]:
    """Hooks at the layers: a phase for the first and the last period, forwards and backwards."""
    handles = []
    count = len(stack.layers)
    for number, layer in enumerate(stack.layers):
        place = "first" if number < stack.period else "last" if number >= count - stack.period else "middle"

        def before(module: nn.Module, args: Any, kwargs: Any, place: str = place, first: bool = number == 0) -> None:
            if torch.is_grad_enabled() or not decoder:
                memory.enter(f"{stack.name}, forward, {place}", "activations")
            for value in (*args, *kwargs.values()):
                if first and isinstance(value, Tensor) and value.requires_grad:
                    value.register_hook(lambda _: memory.enter(f"before {stack.name}, backward", "workspace"))

        def after(module: nn.Module, args: Any, out: Any, place: str = place, last: bool = number + 1 == count) -> None:
            if last:
                memory.enter(f"after {stack.name}", "loss" if decoder else "activations")
            hidden = out if isinstance(out, Tensor) else out[0]
            if isinstance(hidden, Tensor) and hidden.requires_grad:
                hidden.register_hook(lambda _: memory.enter(f"{stack.name}, backward, {place}", "workspace"))

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after))
    return handles
