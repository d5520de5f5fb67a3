"""Which parts of a model are split over processes, which are copied, and what is gathered together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from vlm.config.run import Parallel
from vlm.models.vlm import VLM
from vlm.runners.train.parallel.recompute import checkpointable_modules

LITTLE = 0.1
"""Share of the free memory up to which a frozen part is copied rather than gathered at each use."""


@dataclass(frozen=True)
class Unit:
    """Parameters that are gathered together: those of a module, and of others that run within its call."""

    name: str
    module: nn.Module
    guests: tuple[nn.Module, ...] = ()


@dataclass
class Choice:
    """What becomes of the parts of a model."""

    units: list[Unit] = field(default_factory=list)  # what is in none of them is gathered for the whole step
    copied: list[nn.Parameter] = field(default_factory=list)  # frozen ones of which every process has a copy
    reasons: list[str] = field(default_factory=list)  # a line per part, for the log
    even: bool = False  # whether some of the units belong to the visual parts


def choose(model: VLM, options: Parallel, free: int) -> Choice:
    """Decide for each part of ``model``.

    Args:
        model: the composition, with the trainable parameters chosen.
        options: ``run.parallel``; ``shard`` is not none.
        free: bytes of a process's device that are free.
    """
    result = Choice()
    for name, part in _beside(model):
        frozen = [p for p in part.parameters() if not p.requires_grad]
        trained = size_of([p for p in part.parameters() if p.requires_grad])
        copy, why = _is_copied(options, size_of(frozen), free)
        if frozen and copy:
            result.copied += frozen
            result.reasons.append(f"{name}: {mib(size_of(frozen))} frozen, copied ({why})")
        elif frozen:
            result.reasons.append(f"{name}: {mib(size_of(frozen))} frozen, in shards ({why})")
        if trained:
            result.reasons.append(f"{name}: {mib(trained)} trained, in shards")
        if options.shard == "all" and not name.startswith("inserts") and _needs_units(copy, trained, free):
            found = [Unit(f"{name}.{inner}" if inner else name, module) for inner, module in blocks(part)]
            result.units += found
            result.even = result.even or bool(found)
    result.units += _layers(model)
    llm = list(model.llm.parameters())
    trained = size_of([p for p in llm if p.requires_grad])
    result.reasons.append(f"llm: {mib(size_of(llm) - trained)} frozen and {mib(trained)} trained, in shards")
    return result


def blocks(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The repeated layers of a part that are called as modules."""
    for name, module in checkpointable_modules(part):
        if type(module).forward is not nn.Module.forward and any(True for _ in module.parameters()):
            yield name, module


def size_of(parameters: list[nn.Parameter]) -> int:
    """Bytes of whole parameters."""
    return sum(p.numel() * p.element_size() for p in parameters)


def mib(size: int) -> str:
    """A size for the log."""
    return f"{size / 2**20:,.1f} MiB"


def _beside(model: VLM) -> Iterator[tuple[str, nn.Module]]:
    """The parts beside the LLM."""
    if model.vision is not None:
        yield "vision", model.vision
    for kind, parts in (("bridge", model.bridge), ("inserts", model.inserts)):
        yield from ((f"{kind}.{number}", part) for number, part in enumerate(parts))


def _is_copied(options: Parallel, size: int, free: int) -> tuple[bool, str]:
    if options.shard == "llm":
        return True, "run.parallel.shard=llm splits the LLM"
    if options.frozen != "auto":
        return options.frozen == "replicate", f"run.parallel.frozen={options.frozen}"
    share = f"{size / max(free, 1):.1%} of the {mib(free)} that are free, {LITTLE:.0%} is little"
    return size <= LITTLE * free, share


def _needs_units(copied: bool, trained: int, free: int) -> bool:
    """Whether a visual part is gathered layer by layer, and not as a whole for each step."""
    return not copied or trained > LITTLE * free


def _layers(model: VLM) -> Iterator[Unit]:
    """The decoder layers. Inserts run within the call of their layer, and are gathered with it."""
    for number, layer in enumerate(model.llm.layers()):
        guests = [insert.layers[str(number)] for insert in model.inserts if str(number) in insert.layers]
        yield Unit(f"llm layer {number}", layer, tuple(guests))
