"""What sharding and copies change: the share of a process, and what is gathered for a while. By arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from vlm.common.errors import ConfigError
from vlm.config.run import Parallel
from vlm.runners.train.parallel.recompute import checkpointable_modules

AHEAD = 2
"""Units that are whole at a time: the one in use, and the next one, which is gathered meanwhile."""


@dataclass(frozen=True)
class Share:
    """Bytes of one process, and the divisor of what is sharded.

    Attributes:
        weights: parameters that it keeps.
        gathered: units that are whole for a while, with their gradients before they are divided.
        copies: buffers of communication (buckets of DDP).
        gradients, optimizer: factor of the whole model's.
        kept_whole: names of parts that are not divided, for the page.
    """

    weights: int
    gathered: int
    copies: int
    gradients: float
    optimizer: float
    kept_whole: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Unit:
    bytes: int
    whole: int  # when gathered, in the dtype of the computation
    trained: int  # bytes of gradients


def check_mesh(parallel: Parallel, processes: int) -> None:
    """Raises ConfigError: sharding over one process, or groups that do not divide the processes."""
    if parallel.shard == "none":
        return
    if processes < 2:
        raise ConfigError(
            f"run.parallel.shard is {parallel.shard}, but the plan is for one process",
            fix="plan for several: --gpus 8 (per machine), --nodes",
        )
    if processes % parallel.replicate:
        raise ConfigError(
            f"run.parallel.replicate is {parallel.replicate}, which does not divide {processes} processes",
            fix=f"allowed: {', '.join(str(n) for n in range(1, processes + 1) if processes % n == 0)}",
        )


def share_of(
    model: nn.Module, parallel: Parallel, processes: int, compute: torch.dtype | None, frozen_whole: bool
) -> Share:
    """The share of one of ``processes``.

    Args:
        model: whole, of fake tensors.
        parallel: ``run.parallel``.
        processes: of the run.
        compute: dtype in which gathered trained units are computed; None: as they are stored.
        frozen_whole: frozen parts beside the LLM are copied (``parallel.frozen``, or because they fit).
    """
    named = list(model.named_parameters())
    total = sum(_bytes(p) for _, p in named)
    trained = sum(_bytes(p) for _, p in named if p.requires_grad)
    if parallel.shard == "none":
        return Share(total, 0, trained if processes > 1 else 0, 1.0, 1.0)
    ranks = processes // parallel.replicate

    def divided(name: str, parameter: nn.Parameter) -> bool:
        if parameter.requires_grad or name.startswith("llm."):
            return True
        return parallel.shard == "all" and not frozen_whole

    inside = [(name, p) for name, p in named if divided(name, p)]
    whole = sum(_bytes(p) for name, p in named if not divided(name, p))
    units = list(_units(model, dict(inside), compute))
    root, layers = units[0], sorted(units[1:], key=lambda unit: unit.whole, reverse=True)
    gathered = root.whole + sum(unit.whole for unit in layers[:AHEAD]) + max(unit.trained for unit in units)
    pieces = -(-sum(_bytes(p) for _, p in inside) // ranks)
    parts = sorted({name.partition(".")[0] for name, p in named if not divided(name, p)})
    if parallel.offload == "cpu":
        return Share(whole, gathered, 0, 0.0, 0.0, tuple(parts))
    return Share(whole + pieces, gathered, 0, 1 / ranks, 1 / ranks, tuple(parts))


def _units(model: nn.Module, inside: dict[str, nn.Parameter], compute: torch.dtype | None) -> Iterator[_Unit]:
    """What is gathered together: first all that is in no layer, then each layer."""
    layers = list(checkpointable_modules(model))
    left = dict(inside)
    found = []
    for name, _ in layers:
        own = [left.pop(key) for key in list(left) if key.startswith(f"{name}.")]
        if own:
            found.append(_unit(own, compute))
    yield _unit(list(left.values()), compute)
    yield from found


def _unit(parameters: list[nn.Parameter], compute: torch.dtype | None) -> _Unit:
    short = compute.itemsize if compute is not None else 4
    whole = sum(p.numel() * (min(short, p.element_size()) if p.requires_grad else p.element_size()) for p in parameters)
    return _Unit(sum(map(_bytes, parameters)), whole, sum(_bytes(p) for p in parameters if p.requires_grad))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
