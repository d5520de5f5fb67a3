"""Base of the modules between the decoder layers of an LLM, and the data that they read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vlm.common.errors import ConfigError
from vlm.models.layer_hooks import hooks_of


@dataclass
class InsertData:
    """What a call of the LLM carries for its inserts besides the hidden states. Its values never change in place.

    tokens    one value per position, each ``[b, L, ...]``; they move with the positions (padding, packing)
    shared    values of the whole call, e.g. visual tokens ``[n, k, d]``; ``tokens`` hold indices into them, so that
              rows can be selected or repeated
    appended  name in ``tokens`` -> its value at a position that generation appends; default: the row's last value
    parts     of joined data: what ``shared`` was joined from
    made      what inserts computed from ``shared``, see :meth:`from_shared`; the copies made below have it too
    """

    tokens: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    appended: dict[str, Any] = field(default_factory=dict)
    parts: tuple[InsertData, ...] = ()
    made: dict[Hashable, Tensor] = field(default_factory=dict, repr=False)
    _of_call: dict[Hashable, Any] = field(default_factory=dict, repr=False, init=False)

    def from_shared(
        self, key: Hashable, make: Callable[[InsertData], Tensor], join: Callable[[Sequence[Tensor]], Tensor]
    ) -> Tensor:
        """``make(self)``, which reads ``shared`` alone, computed once for all steps of an answer; without gradients.

        Args:
            key: whose value it is, usually a module.
            make: computes the value.
            join: makes the value of joined data from those of its ``parts``.
        """
        if key not in self.made:
            values = [part.from_shared(key, make, join) for part in self.parts]
            self.made[key] = join(values) if values else make(self)
        return self.made[key]

    def once(self, key: Hashable, make: Callable[[InsertData], Any]) -> Any:
        """``make(self)``, computed once for all layers of a call; it holds nothing with a gradient."""
        if key not in self._of_call:
            self._of_call[key] = make(self)
        return self._of_call[key]

    def moved(self, move: Callable[[Tensor], Tensor]) -> InsertData:
        """A copy with ``move`` applied to every tensor of ``tokens``."""
        return replace(self, tokens={name: move(value) for name, value in self.tokens.items()})

    def gather(self, index: Tensor) -> InsertData:
        """``tokens`` at ``index [b, L]`` of each row."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        return self.moved(lambda value: value[rows, index])

    def flat(self, index: Tensor) -> InsertData:
        """``tokens`` as one row ``[1, T, ...]`` of the positions ``index [T]`` in ``[b * L]``."""
        return self.moved(lambda value: value.flatten(0, 1).index_select(0, index)[None])

    def step(self) -> InsertData:
        """``tokens [b, 1, ...]`` of the position that generation appends next."""
        last = self.moved(lambda value: value[:, -1:])
        for name, value in self.appended.items():
            last.tokens[name] = torch.full_like(last.tokens[name], value)
        return last

    def extended(self) -> InsertData:
        """``tokens [b, L + 1, ...]`` with the position of :meth:`step` at the end."""
        new = self.step().tokens
        return replace(self, tokens={name: torch.cat([value, new[name]], 1) for name, value in self.tokens.items()})


class Insert(nn.Module):
    """Base of the inserts: ``layers`` holds a module per decoder layer, keyed by the layer's number.

    The contract is :class:`~vlm.models.protocols.LayerInsert`; a subclass fills ``layers`` and overrides ``before`` or
    ``after``.
    """

    needs_data: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()

    def before(self, module: Any, hidden: Tensor, data: InsertData | None) -> Tensor:
        """Input of a decoder layer ``[b, L, d]`` (packed: ``[1, T, d]``) -> its new input."""
        return hidden

    def after(self, module: Any, hidden: Tensor, data: InsertData | None) -> Tensor:
        """Output of a decoder layer ``[b, L, d]`` (packed: ``[1, T, d]``) -> its new output."""
        return hidden

    def checkpointable_modules(self) -> list[nn.Module]:
        """None: an insert is recomputed together with its decoder layer."""
        return []

    def attach(self, llm: Any) -> None:
        """Hook into the decoder layers of ``llm`` (a ``LanguageModel``), after the inserts attached earlier."""
        layers = llm.layers()
        for key, module in self.layers.items():
            hooks_of(layers[int(key)]).inserts.append((self, module))


def stacked(values: Sequence[Tensor]) -> Tensor:
    """``[n_i, k_i, ...]`` one after another as ``[sum n_i, max k_i, ...]``, filled up with zeros."""
    most = max(value.shape[1] for value in values)
    return torch.cat([pad(value, [0] * 2 * (value.dim() - 2) + [0, most - value.shape[1]]) for value in values])


def layer_numbers(num_layers: int, every: int, first: int, where: str) -> range:
    """Decoder layers ``first, first + every, ...`` of ``num_layers``, counted from 0.

    Raises:
        ConfigError: no layer is chosen; ``where`` is the part's name in the message.
    """
    if every < 1 or not 0 <= first < num_layers:
        raise ConfigError(
            f"model.inserts {where}: every {every} and first {first} choose no layer of an LLM with {num_layers}",
            fix=f"every is at least 1, first from 0 to {num_layers - 1}",
        )
    return range(first, num_layers, every)
