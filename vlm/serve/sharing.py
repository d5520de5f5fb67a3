"""One copy in memory of what several models have in common, such as the base below two LoRA runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlm.checkpoint.strict import WRAPPED
from vlm.models.llm.linear.int8 import Int8Linear

if TYPE_CHECKING:
    from vlm.models.vlm import VLM

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def share_weights(model: VLM, others: Iterable[VLM]) -> int:
    """Have ``model`` use the memory of ``others`` wherever a parameter or buffer is the same there, bit for bit.

    A tensor is compared with the one of the same name (of the layer below, where LoRA wraps it), shape, type and
    device; an int8 layer of a CPU by its scales and the file that it was made from. Values are never written by
    inference; whoever edits weights in place calls :func:`own_weights` before. Weights in containers of other packages
    (bitsandbytes) stay apart.

    Returns:
        Bytes that ``model`` no longer holds itself.
    """
    others = list(others)
    saved = sum(_share_int8(model, other) for other in others)
    known: dict[str, list[Tensor]] = {}
    for other in others:
        for name, tensor in _plain(other):
            known.setdefault(_layer(name), []).append(tensor)
    for name, tensor in _plain(model):
        found = next((t for t in known.get(_layer(name), ()) if _is_same(tensor, t)), None)
        if found is not None and found.data_ptr() != tensor.data_ptr():
            saved += tensor.nbytes
            tensor.data = found.data
    return saved


def _share_int8(model: VLM, other: VLM) -> int:
    """Put the int8 layers of ``other`` in place of equal ones of ``model``; the bytes of these."""
    theirs = {_layer(name): (name, layer) for name, layer in other.named_modules() if isinstance(layer, Int8Linear)}
    saved = 0
    for name, mine in list(model.named_modules()):
        if not isinstance(mine, Int8Linear) or _layer(name) not in theirs:
            continue
        their_name, layer = theirs[_layer(name)]
        file = _file_of(model, name)
        is_same = file is not None and file == _file_of(other, their_name)
        if layer is not mine and is_same and layer.packed == mine.packed and _is_same(layer.scale, mine.scale):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer)
            saved += mine.weight.numel() * mine.weight.element_size()
    return saved


def _file_of(model: VLM, name: str) -> Hashable:
    """The file that an int8 layer was made from; of several layers joined in one, that of the first."""
    return model.read_from.get(f"{name.removesuffix('.joined.layer')}.weight")


def own_weights(model: VLM) -> None:
    """Give ``model`` memory of its own, so that an edit in place (merging LoRA, loading a file) changes no other.

    Int8 layers, which cannot be edited, stay shared.
    """
    for _, tensor in _plain(model):
        tensor.data = tensor.data.clone()


def weight_bytes(models: Iterable[nn.Module]) -> int:
    """Bytes of the parameters and buffers of all models, those with the same memory counted once."""
    found = {}
    for model in models:
        for _, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.layout is torch.strided and not tensor.is_meta:
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
            elif not tensor.is_meta:  # packed for a kernel
                found[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(found.values())


def _plain(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that are tensors of torch itself; a tied one comes once."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        is_plain = type(tensor) in (nn.Parameter, Tensor) and tensor.layout is torch.strided
        if is_plain and not tensor.is_meta and tensor.numel():
            yield name, tensor


def _layer(name: str) -> str:
    return f"{name}.".replace(WRAPPED, ".").rstrip(".")


def _is_same(a: Tensor, b: Tensor) -> bool:
    alike = (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
    bits = _BITS.get(a.dtype.itemsize)
    if not alike or bits is None or a.is_quantized:
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(a.detach().view(bits), b.detach().view(bits))
