"""What sharding and copies change: the share of a process, and what is gathered for a while. By arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vlm.config.run import Parallel
from vlm.models.vlm import VLM
from vlm.runners.train.parallel.units import choose, size_of

AHEAD = 2
"""Units that are whole at a time: the one in use, and the next one, which is gathered meanwhile."""


@dataclass(frozen=True)
class Share:
    """Bytes of one process, and the factors of what is divided.

    Attributes:
        weights: parameters that it keeps.
        gathered: least that is whole for a while, with the gradients of a unit before they are divided.
        copies: buffers of communication (buckets of DDP).
        gradients, optimizer: factor of the whole model's.
        notes: why parts are divided or copied.
    """

    weights: int
    gathered: int = 0
    copies: int = 0
    gradients: float = 1.0
    optimizer: float = 1.0
    notes: tuple[str, ...] = ()


def share_of(model: VLM, parallel: Parallel, processes: int, free: int) -> Share:
    """The share of one of ``processes``; units and copies are chosen as a run chooses them.

    Args:
        model: whole, of fake tensors.
        parallel: ``run.parallel``.
        processes: of the run.
        free: bytes of a device.
    """
    every = list(model.parameters())
    if parallel.shard == "none":
        copies = size_of([p for p in every if p.requires_grad]) if processes > 1 else 0
        return Share(size_of(every), copies=copies)
    choice = choose(model, parallel, free)
    whole = [*choice.copied, *(p for p in every if p.dim() == 0)]
    taken = {id(p) for p in whole}
    units: list[list[nn.Parameter]] = []
    for unit in choice.units:
        inside = [p for module in (unit.module, *unit.guests) for p in module.parameters()]
        units.append(_left(inside, taken))
    root = _left(every, taken)
    largest = sorted(map(size_of, units), reverse=True)[:AHEAD]
    gradients = max(size_of([p for p in unit if p.requires_grad]) for unit in [root, *units])
    gathered = size_of(root) + sum(largest) + gradients
    ranks = processes // parallel.replicate
    if parallel.offload == "cpu":
        return Share(size_of(whole), gathered, 0, 0.0, 0.0, tuple(choice.reasons))
    divided = size_of(every) - size_of(whole)
    return Share(size_of(whole) + -(-divided // ranks), gathered, 0, 1 / ranks, 1 / ranks, tuple(choice.reasons))


def _left(parameters: Iterable[nn.Parameter], taken: set[int]) -> list[nn.Parameter]:
    """Those that no unit has yet; they are taken from now on."""
    found = []
    for parameter in parameters:
        if id(parameter) not in taken:
            taken.add(id(parameter))
            found.append(parameter)
    return found
