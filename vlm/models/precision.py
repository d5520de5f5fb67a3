"""The dtype policy.

* Trainable parameters and LoRA's matrices are float32 everywhere.
* Frozen parts of the vision encoder and the bridges keep their convolutions and linear layers in the configured
  dtype (``vision.precision``, or the run's) and everything else in float32. Under autocast the results equal those of
  float32 storage, without casting the weights at each step.
* The LLM is stored in the configured dtype throughout, as Hugging Face loads it.
* On the CPU everything is float32 unless bfloat16 is asked for.
* A forward pass runs under autocast of the stored dtype, unless its caller has entered autocast already. An engine's
  answers, which callers share, do not depend on theirs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch
from torch import nn

from vlm.common.errors import ConfigError
from vlm.models.lora import is_lora

SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DTYPES = {name: getattr(torch, full) for short, full in SHORT.items() for name in (short, full)}
"""Spellings accepted in YAML."""


_planned: ContextVar[str | None] = ContextVar("planned", default=None)


@contextlib.contextmanager
def planned_for(kind: str) -> Iterator[None]:
    """Within the block, what depends on the type of device is chosen as on a device of type ``kind`` (``vlm plan``)."""
    token = _planned.set(kind)
    try:
        yield
    finally:
        _planned.reset(token)


def device_kind(tensor: torch.Tensor) -> str:
    """Type of the device that computes ``tensor``, or that is planned for (:func:`planned_for`)."""
    return _planned.get() or tensor.device.type


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """The dtype called ``name``. Raises ConfigError: a spelling that is not in ``DTYPES``."""
    if isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise ConfigError(f"unknown precision {name!r} (known: {', '.join(DTYPES)})")
    return DTYPES[name]


def storage_dtype(
    asked: str | torch.dtype, device: torch.device | str, override: torch.dtype | None = None
) -> torch.dtype:
    """Storage dtype of frozen weights: ``override``, else ``asked``; on the CPU float32 instead of float16."""
    dtype = parse_dtype(asked) if override is None else override
    if torch.device(device).type == "cpu" and dtype is torch.float16:
        return torch.float32
    return dtype


def cast_matmuls(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the frozen convolutions and linear layers of ``module`` to ``dtype``, all else (and LoRA) to float32."""
    for name, child in module.named_modules():
        matmul = isinstance(child, nn.Linear | nn.Conv2d | nn.Conv3d) and not is_lora(f".{name}")
        for parameter in child.parameters(recurse=False):
            if parameter.is_floating_point():
                frozen = not parameter.requires_grad
                parameter.data = parameter.data.to(dtype if matmul and frozen else torch.float32)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast for ``dtype``, unless it is float32 or the caller has entered autocast already."""
    if dtype is torch.float32 or device.type == "meta" or torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Leaves the caller's autocast, for what must not depend on who computes it, such as what a cache keeps."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
