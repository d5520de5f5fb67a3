"""One copy in memory of what several models have in common, such as the base below two LoRA runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlm.checkpoint.strict import WRAPPED

if TYPE_CHECKING:
    from vlm.models.vlm import VLM

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def share_weights(model: VLM, others: Iterable[VLM]) -> int:
    """Have ``model`` use the memory of ``others`` wherever a parameter or buffer is the same there, bit for bit.

    A tensor is compared with the one of the same name (of the layer below, where LoRA wraps it), shape, type and
    device. Values are never written by inference; whoever edits weights in place calls :func:`own_weights` before.
    Weights in containers of other packages (bitsandbytes) stay apart.

    Returns:
        Bytes that ``model`` no longer holds itself.
    """
    known: dict[str, list[Tensor]] = {}
    for other in others:
        for name, tensor in _plain(other):
            known.setdefault(_layer(name), []).append(tensor)
    saved = 0
    for name, tensor in _plain(model):
        found = next((t for t in known.get(_layer(name), ()) if _is_same(tensor, t)), None)
        if found is not None and found.data_ptr() != tensor.data_ptr():
            saved += tensor.nbytes
            tensor.data = found.data
    return saved


def own_weights(model: VLM) -> None:
    """Give ``model`` memory of its own, so that an edit in place (merging LoRA, loading a file) changes no other."""
    for _, tensor in _plain(model):
        tensor.data = tensor.data.clone()


def weight_bytes(models: Iterable[nn.Module]) -> int:
    """Bytes of the parameters and buffers of all models, those with the same memory counted once."""
    found = {}
    for model in models:
        for _, tensor in _plain(model):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _plain(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that are tensors of torch itself; a tied one comes once."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if type(tensor) in (nn.Parameter, Tensor) and not tensor.is_meta and tensor.numel():
            yield name, tensor


def _layer(name: str) -> str:
    return name.replace(WRAPPED, ".")


def _is_same(a: Tensor, b: Tensor) -> bool:
    alike = (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
    bits = _BITS.get(a.dtype.itemsize)
    if not alike or bits is None or a.is_quantized or a.layout is not torch.strided:
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(a.detach().view(bits), b.detach().view(bits))
