"""The one wrapper around a decoder layer's ``forward``.

Order of a call: recompute -> inserts before the layer -> layer -> inserts after it. Within the layer, the MLP can be
trimmed to the tokens whose output is read. What a call needs travels in its arguments (``insert_data``, ``layout``),
so that a recomputation in the backward pass sees the same values and calls of several threads stay apart. Within a
layer the layout is a context variable, because not every family passes unknown arguments down to its attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlm.common.bounds import LAYERS
from vlm.common.errors import ConfigError

if TYPE_CHECKING:
    from vlm.models.inserts.base import InsertData
    from vlm.models.llm.slots import SlotLayout
    from vlm.models.protocols import LayerInsert

INSERT_DATA = "insert_data"
"""Argument of the LLM and of its layers that holds an ``InsertData``."""
LAYOUT = "layout"
"""Argument of the LLM and of its layers that holds a :class:`Layout` (or a ``SlotLayout``)."""


@dataclass
class Layout:
    """Places of the tokens of a packed row ``[1, T]`` in a padded batch ``[samples, longest]``."""

    gather: Tensor  # ``[samples * longest]`` index in the row of the token at each place (0 at padding)
    scatter: Tensor  # ``[T]`` place of each token
    samples: int  # number of samples
    longest: int  # tokens of the longest sample
    keep: Tensor | None = None  # ``[t]`` tokens whose hidden states are read; None: all
    calls: int = 0  # calls of the attention that have used the layout

    def spread(self, values: Tensor) -> Tensor:
        """``[T]`` -> ``[samples, longest]``, 0 at padding."""
        places = values.new_zeros(self.samples * self.longest)
        return places.index_copy(0, self.scatter, values).view(self.samples, self.longest)


_layout: ContextVar[Layout | SlotLayout | None] = ContextVar("layout", default=None)


def current_layout() -> Layout | SlotLayout | None:
    """The layout of the packed row that the language model is working on in this thread, if any."""
    return _layout.get()


@contextlib.contextmanager
def laid_out(layout: Layout | SlotLayout | None) -> Iterator[None]:
    """Within the block, the language model works on a packed row of this layout (None: on a padded batch)."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def checkpointed(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``run(*args, **kwargs)``, with activations recomputed in the backward pass instead of kept."""
    return checkpoint(run, *args, use_reentrant=False, **kwargs)


class LayerHooks:
    """Replaces the ``forward`` of one layer; :func:`hooks_of` installs it. State-dict keys stay as they are.

    Attributes:
        layer: the wrapped layer.
        inserts: (insert, its module at this layer), in the order in which they work.
        recompute: calls the layer so that its activations are recomputed (:func:`checkpointed`), or None.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.forward: Callable[..., Any] = layer.forward
        self.inserts: list[tuple[LayerInsert, nn.Module]] = []
        self.recompute: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Like the layer's own ``forward``; recomputed only where a gradient flows.

        Raises ConfigError: an insert needs data that the LLM did not pass on.
        """
        if self.recompute is None or not torch.is_grad_enabled() or not self._has_gradient(*args, *kwargs.values()):
            return self.run(*args, **kwargs)
        return self.recompute(self.run, *args, **{LAYOUT: current_layout(), **kwargs})

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The layer between its inserts; ``hidden_states`` (or the first argument) is ``[b, s, d]``."""
        with laid_out(kwargs.pop(LAYOUT, current_layout())):
            return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        data = kwargs.pop(INSERT_DATA, None)
        if not self.inserts:
            return self.forward(*args, **kwargs)
        hidden, *rest = args or (kwargs.pop("hidden_states"),)
        for insert, module in self.inserts:
            if insert.needs_data and data is None:
                raise ConfigError(
                    "model.llm: this kind of language model passes no further data to its layers, "
                    "which model.inserts needs",
                    fix="use an LLM of another family (LLaMA, Qwen, Mistral, ...), or a fusion that splices",
                )
            hidden = insert.before(module, hidden, data)
        out = self.forward(hidden, *rest, **kwargs)
        hidden = out if isinstance(out, Tensor) else out[0]
        for insert, module in self.inserts:
            hidden = insert.after(module, hidden, data)
            if insert.needs_data and torch.is_grad_enabled() and not _has_values(data):
                hidden = hidden + zero_of(module.parameters())
        return hidden if isinstance(out, Tensor) else (hidden, *out[1:])

    def _has_gradient(self, *values: Any) -> bool:
        modules = [self.layer, *(module for _, module in self.inserts)]
        parameters = (p for module in modules for p in module.parameters())
        return any(isinstance(v, Tensor) and v.requires_grad for v in chain(values, parameters))


def _has_values(data: InsertData | None) -> bool:
    """Whether a call carries media or other values that inserts read."""
    return data is not None and any(isinstance(value, Tensor) for value in data.shared.values())


def zero_of(tensors: Iterable[Tensor]) -> Tensor | float:
    """Zero, as a function of those of ``tensors`` that have a gradient, whatever their numbers.

    In the backward pass they have a gradient of zeros then, as others have on processes that use them.
    """
    return sum((t.reshape(-1)[:0].sum() for t in tensors if t.requires_grad), 0.0)


class TrimmedMLP:
    """Replaces an MLP's ``forward``: only the rows in use are computed, the others are zero.

    Nothing reads those zeros: attention is over, and only the rows in use reach the head.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, hidden: Tensor, *more: Any, **options: Any) -> Any:
        """``[1, T, d]`` -> ``[1, T, d]``; an MLP that takes or returns more than that computes all rows."""
        layout = current_layout()
        if layout is None or layout.keep is None or more or options or hidden.dim() != 3:
            return self.forward(hidden, *more, **options)
        some = self.forward(hidden[:, layout.keep])
        if not isinstance(some, Tensor):  # a mixture of experts may return more than one value
            return self.forward(hidden)
        return some.new_zeros(hidden.shape).index_copy(1, layout.keep, some)


def hooks_of(layer: nn.Module) -> LayerHooks:
    """The hooks of ``layer``, installed on the first call."""
    hooks: Any = layer.forward
    if not isinstance(hooks, LayerHooks):
        hooks = LayerHooks(layer)
        layer.__dict__["forward"] = hooks
    return hooks


def check_depth(layers: Any, part: str) -> None:
    """Raises ConfigError: ``num_hidden_layers`` of a file is not a number of layers that anything has."""
    if not isinstance(layers, int) or not LAYERS.allows(layers):
        raise ConfigError(f"{part}: num_hidden_layers is {layers!r:.80}, expected {LAYERS.describe('an integer')}")


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """Recompute each layer in the backward pass, in train and in eval mode.

    Frozen layers stay in eval mode, where transformers' own switch does nothing.
    """
    for layer in layers:
        hooks_of(layer).recompute = checkpointed


def trim_last_layer(layers: nn.ModuleList) -> None:
    """Let the last of ``layers`` skip its MLP where the output is not read, if it has a module ``mlp``.

    All layers get hooks, which take the layout of a packed row.
    """
    for layer in layers:
        hooks_of(layer)
    mlp = dict(layers[-1].named_children()).get("mlp")
    if mlp is not None:
        mlp.__dict__["forward"] = TrimmedMLP(mlp.forward)
