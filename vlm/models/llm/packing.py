"""Running a decoder over packed rows: the samples of a row never see one another.

*In one row*, where the family allows it (:func:`can_pack`): a padded or packed batch ``[b, L]`` becomes one row
``[1, T]`` of its T real tokens. All layers but attention work token by token and need no change; attention gathers the
row into ``[samples, longest]``, attends as each sample alone would (transformers builds the mask, with the window or
the chunks of the layer) and scatters the result back.

*Apart*, for all other families (recurrent layers, position biases, attention of their own): samples of similar length
run as padded batches, which any language model understands.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.errors import ConfigError
from vlm.models.layer_hooks import Layout
from vlm.models.llm.attention import ATTENTION, OWN_ATTENTION

PACKED_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers (``layer_types`` of transformers) whose only mixing of tokens is attention with a mask."""


def pack(segments: Tensor) -> tuple[Tensor, Layout]:
    """Flat indices ``[T]`` of the real tokens in ``[b * L]``, and their layout.

    ``segments [b, L]`` are 0 at padding; equal numbers side by side are one sample.
    """
    flat = segments.flatten()
    index = flat.nonzero()[:, 0]
    first = torch.ones_like(segments, dtype=torch.bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first = first.flatten()[index]
    sample = first.long().cumsum(0) - 1
    count = torch.arange(len(index), device=flat.device)
    position = count - torch.where(first, count, 0).cummax(0).values
    samples, longest = (torch.stack([sample[-1], position.max()]) + 1).tolist()
    scatter = sample * longest + position
    gather = torch.zeros(samples * longest, dtype=torch.long, device=flat.device)
    gather[scatter] = count
    return index, Layout(gather, scatter, samples, longest)


def apart(segments: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Padded batches of the samples of packed rows, the longest samples first.

    Args:
        segments: ``[b, L]``, 0 at padding.

    Yields:
        ``index [n, longest]`` into ``[b * L]``, 0 at padding, and ``real [n, longest]``, False there. No batch has
        more positions than the rows.
    """
    index, layout = pack(segments)
    places = index[layout.gather].unflatten(0, (layout.samples, layout.longest))
    real = torch.zeros_like(layout.gather, dtype=torch.bool)
    real[layout.scatter] = True
    real = real.view_as(places)
    lengths, order = real.sum(1).sort(descending=True, stable=True)
    sizes, first = lengths.tolist(), 0
    while first < len(sizes):
        rows = order[first : first + max(1, segments.numel() // sizes[first])]
        yield places[rows, : sizes[first]], real[rows, : sizes[first]]
        first += len(rows)


def can_pack(model: Any) -> bool:
    """Whether samples of ``model`` (of transformers) can share a row: given positions, attention by the interface."""
    return (
        uses_interface(model)
        and bool(getattr(model.config.get_text_config(), "rope_parameters", None))
        and mixes_by_attention(model)
        and takes_positions(base_of(model))
    )


def uses_interface(model: Any) -> bool:
    """Whether the attention and the masks of ``model`` (of transformers) are those registered here."""
    return model.config.get_text_config()._attn_implementation in (ATTENTION, OWN_ATTENTION)


def base_of(model: Any) -> Any:
    """The part of a causal model below its head; some classes name it otherwise than ``base_model_prefix`` says."""
    if model.base_model is not model:
        return model.base_model
    embeddings = model.get_input_embeddings()
    return next((child for child in model.children() if any(m is embeddings for m in child.modules())), None)


def mixes_by_attention(model: Any) -> bool:
    """Whether attention with a mask is all that mixes tokens: no recurrence, no convolution."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return (
        set(kinds) <= PACKED_LAYERS
        and not model._is_stateful
        and not any(isinstance(module, nn.Conv1d) for module in model.modules())
    )


def takes_positions(model: Any) -> bool:
    """Whether positions can be given to ``model`` (of transformers, or its base)."""
    return "position_ids" in inspect.signature(model.forward).parameters


def axes_first(positions: Tensor) -> Tensor:
    """Positions as transformers takes them: ``[b, L]`` as they are, ``[b, L, axes]`` -> ``[axes, b, L]``."""
    return positions if positions.dim() == 2 else positions.movedim(-1, 0)


def position_axes(model: Any) -> int:
    """Axes of the rotary positions of ``model`` (of transformers): 3 for time, row and column; 1 for text alone.

    Raises ConfigError: the stated shares of the axes are not the rotary frequencies that there are.
    """
    rope = model.config.get_text_config().to_dict().get("rope_parameters") or {}
    stated = rope.get("mrope_section")
    lengths = {module.inv_freq.numel() for module in model.modules() if "inv_freq" in module._buffers}
    if isinstance(stated, list) and lengths and sum(stated) not in lengths:
        found = f"mrope_section is {stated}, expected numbers that add up to {max(lengths)}, the rotary frequencies"
        raise ConfigError(f"model.llm: {found}")
    own = (vars(module)["mrope_section"] for module in model.modules() if "mrope_section" in vars(module))
    sections = next((found for found in (rope.get("mrope_section"), *own) if isinstance(found, list | tuple)), (1,))
    return len(sections)
