"""Which part of a model first computes values that are not numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.errors import NotFiniteError
from vlm.common.types import Batch, Features
from vlm.models.precision import autocast
from vlm.models.vlm import VLM


@contextlib.contextmanager
def naming_part(model: VLM, batch: Callable[[], Batch]) -> Iterator[None]:
    """Within the block, a :class:`NotFiniteError` is replaced by one that names the part; ``batch`` is run for that."""
    try:
        yield
    except NotFiniteError as error:
        raise locate(model, batch()) or error from error


@torch.no_grad()
def locate(model: VLM, batch: Batch) -> NotFiniteError | None:
    """The error that names the first part whose output for ``batch`` is not finite; None if all outputs are."""
    if batch.pixels is not None and not bool(batch.pixels.isfinite().all()):
        return NotFiniteError("an image has pixels that are not numbers (NaN or infinity)", fix="check how it was made")
    found: list[tuple[str, nn.Module, torch.dtype]] = []

    def watched(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            tensor = _tensor(output)
            if not found and tensor is not None and not bool(tensor.isfinite().all()):
                found.append((name, module, tensor.dtype))

        return hook

    handles = [module.register_forward_hook(watched(name)) for name, module in _parts(model)]
    try:
        inputs = model.prepare(batch)
        with autocast(batch.ids.device, model.compute_dtype):
            logits = model.llm.head(model.llm(inputs))
    finally:
        for handle in handles:
            handle.remove()
    if not found and not bool((logits.isfinite() | (logits == -torch.inf)).all()):
        found.append(("model.llm (head)", model.llm, logits.dtype))
    return _error(*found[0]) if found else None


def _parts(model: VLM) -> list[tuple[str, nn.Module]]:
    """What is watched, by the name in the configuration, in the order of the computation."""
    parts = [] if model.vision is None else [("model.vision", model.vision)]
    parts += [(f"model.bridge.{i}", part) for i, part in enumerate(model.bridge)]
    parts += [("model.llm (token embeddings)", model.llm.model.get_input_embeddings())]
    for number, insert in enumerate(model.inserts):
        parts += [(f"model.inserts.{number}", module) for module in insert.modules() if not isinstance(module, _LISTS)]
    return parts + [(f"model.llm (layer {i})", layer) for i, layer in enumerate(model.llm.layers())]


_LISTS = (nn.ModuleList, nn.ModuleDict)


def _tensor(output: Any) -> Tensor | None:
    """The floating tensor in what a part returned."""
    value = output.tokens if isinstance(output, Features) else output[0] if isinstance(output, tuple) else output
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def _error(name: str, module: nn.Module, dtype: torch.dtype) -> NotFiniteError:
    """The error for a part: damaged weights, or else numbers too large for the dtype."""
    short = str(dtype).removeprefix("torch.")
    bad = [key for key, p in module.named_parameters() if p.is_floating_point() and not bool(p.isfinite().all())]
    if bad:
        return NotFiniteError(
            f"{name} computes values that are not numbers ({short}): {len(bad)} of its weights hold NaN or infinity, "
            f"first {bad[0]}",
            fix="the weight file is damaged, or its run diverged: get it again, or use an earlier checkpoint",
        )
    return NotFiniteError(
        f"{name} computes values that are not numbers ({short}); its weights are finite, so the values outgrow it",
        fix="use bf16 or fp32 in place of fp16 or 8 bits: model.llm.dtype, model.llm.quantize, model.vision.precision",
    )
