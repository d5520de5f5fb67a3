"""Repeated layers: which lists there are, with what period, and how a model runs with fewer of them for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlm.models.inserts.base import Insert
from vlm.models.layer_hooks import LayerHooks
from vlm.models.vlm import VLM

FEWEST = 6
"""Layers of a list that is worth cutting."""
NUMBERS = ("idx", "index", "layer_id", "number")
"""Attributes of a layer that say where it is."""

COUNT = "num_hidden_layers"


@dataclass(frozen=True)
class Stack:
    """A list of layers that repeat after ``period`` of them."""

    name: str  # of the list in the model
    layers: nn.ModuleList
    period: int
    counted_by: Any = None  # transformers' configuration of the module around it, where that counts the layers

    @property
    def depth(self) -> int:
        """Layers of the whole model."""
        return len(self.layers)

    @property
    def few(self) -> int:
        """Layers to trace: two periods and what is left over."""
        return 2 * self.period + self.depth % self.period

    @property
    def cuts(self) -> bool:
        """Whether fewer layers say as much as all."""
        return self.few + self.period < self.depth


def stacks_of(model: VLM) -> list[Stack]:
    """The outermost lists of repeated layers, those of inserts left out (they go with the LLM's layers)."""
    found: list[Stack] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{stack.name}.") for stack in found) or name.startswith("inserts")
        if inside or not isinstance(module, nn.ModuleList) or len(module) < FEWEST:
            continue
        if len({type(layer) for layer in module}) == 1:
            config = vars(model.get_submodule(name.rpartition(".")[0])).get("config")
            counted = config is not None and vars(config).get(COUNT) == len(module)
            found.append(Stack(name, module, period_of(module), config if counted else None))
    return found


def period_of(layers: nn.ModuleList) -> int:
    """Layers after which they repeat; the first and the last may differ from the rest."""
    signs = [signature(layer) for layer in layers]
    inner = signs[1:-1]
    for period in range(1, len(layers)):
        if all(a == b for a, b in zip(inner, inner[period:])):
            return period
    return len(layers)


def signature(layer: nn.Module) -> tuple[Any, ...]:
    """What makes a layer compute as another one does: modules, shapes, options, inserts."""
    parts: list[Any] = []
    for name, module in layer.named_modules():
        options = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, str | int | None) and not any(word in key for word in NUMBERS) and key != "forward"
        }
        shapes = [(key, tuple(p.shape), p.requires_grad) for key, p in module.named_parameters(recurse=False)]
        parts.append((name, type(module).__name__, tuple(sorted(options.items(), key=repr)), tuple(shapes)))
    hooks = vars(layer).get("forward")
    inserted = [signature(module) for _, module in hooks.inserts] if isinstance(hooks, LayerHooks) else []
    return (*parts, *inserted)


@contextlib.contextmanager
def cut(model: VLM, depths: Mapping[str, int], stacks: list[Stack]) -> Iterator[None]:
    """Within the block, each named list has so many layers: the first period, and the last ones."""
    before: list[tuple[nn.Module, dict[str, Any]]] = []
    try:
        for stack in stacks:
            keep = depths.get(stack.name, stack.depth)
            all_layers = list(stack.layers)
            first = stack.period
            dropped = all_layers[first : stack.depth - (keep - first)] if keep < stack.depth else []
            kept = [layer for layer in all_layers if all(layer is not other for other in dropped)]
            before.append((stack.layers, dict(stack.layers._modules)))
            stack.layers._modules = {str(n): layer for n, layer in enumerate(kept)}
            if stack.counted_by is not None:
                setattr(stack.counted_by, COUNT, len(kept))
            for insert in model.inserts if dropped else ():
                if isinstance(insert, Insert):
                    before.append((insert.layers, dict(insert.layers._modules)))
                    _drop(insert, dropped)
        yield
    finally:
        for module, modules in reversed(before):
            module._modules = modules
        for stack in stacks:
            if stack.counted_by is not None:
                setattr(stack.counted_by, COUNT, stack.depth)


def _drop(insert: Insert, layers: list[nn.Module]) -> None:
    """Take out the modules of ``insert`` at ``layers``."""
    hooks = [vars(layer).get("forward") for layer in layers]
    gone = {id(module) for hook in hooks if isinstance(hook, LayerHooks) for _, module in hook.inserts}
    insert.layers._modules = {k: m for k, m in insert.layers._modules.items() if id(m) not in gone}
