"""How many of the first visual parts give the same for the same pixels, and what tells two such chains apart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.errors import ConfigError
from vlm.common.processes.shards import is_split
from vlm.models.lora import is_lora
from vlm.models.protocols import ReadsText, WritesOut
from vlm.models.vlm import VLM

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_CHUNK = 1 << 24  # numbers that are hashed at a time


def frozen_parts(model: VLM) -> tuple[int, str]:
    """Number of the first parts whose results can be kept, and why the next one's cannot; empty after the last.

    Raises ConfigError: there is no vision encoder, or its own results cannot be kept.
    """
    if model.vision is None:
        raise ConfigError("run.feature_cache: the model has no vision encoder", fix="set run.feature_cache to null")
    count = 0
    for name, part in named_parts(model):
        if reason := why_not(name, part):
            if count == 0:
                raise ConfigError(
                    f"run.feature_cache: {reason}, so there is nothing before it whose results could be kept",
                    fix="set run.feature_cache to null, or freeze the vision encoder (model.train)",
                )
            return count, reason
        count += 1
    return count, ""


def named_parts(model: VLM) -> list[tuple[str, nn.Module]]:
    """The visual parts by their names in the model, in their order."""
    return [("vision", model.vision), *((f"bridge.{k}", part) for k, part in enumerate(model.bridge))]


def why_not(name: str, part: nn.Module) -> str:
    """Why the results of a part may differ for the same pixels; empty if they do not."""
    trained = [key for key, p in part.named_parameters() if p.requires_grad]
    if trained:
        lora = any(is_lora(f"{name}.{key}") for key in trained)
        return (
            f"{name} has LoRA, which trains ({name}.{trained[0]})" if lora else f"{name} trains ({name}.{trained[0]})"
        )
    options: Any = vars(part).get("config")
    if isinstance(options, ReadsText) and options.reads_text is not None:
        return f"{name} reads the question about an image (reads_text)"
    if not list(part.parameters()):  # without parameters it is in training mode like the model
        for key, module in part.named_modules():
            if isinstance(module, _DROPOUT) and module.p > 0:
                return f"{name} drops values at random ({'.'.join(filter(None, (name, key)))}: {module.p})"
    return ""


def check_whole(model: VLM, count: int) -> None:
    """Raises ConfigError: weights of the first ``count`` parts are divided over processes, which compute together."""
    for name, part in named_parts(model)[:count]:
        if any(is_split(parameter) for parameter in part.parameters()):
            raise ConfigError(
                f"run.feature_cache: the weights of {name} are divided over the processes, which would have to "
                "compute it together, for the same media",
                fix="set run.parallel.frozen=replicate, or run.parallel.shard=llm",
            )


def describe_parts(model: VLM, count: int) -> list[dict[str, Any]]:
    """Name, class, options and a digest of all weights of the first ``count`` parts."""
    return [describe_part(name, part) for name, part in named_parts(model)[:count]]


def describe_part(name: str, part: Any) -> dict[str, Any]:
    """See :func:`describe_parts`."""
    digest = hashlib.sha256()
    for key, tensor in [*part.named_parameters(), *part.named_buffers()]:
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
        for piece in _bytes_of(tensor):
            digest.update(piece)
    options: Any = part.written_out() if isinstance(part, WritesOut) else vars(part).get("config")
    told: Any = str(options)
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        told = dataclasses.asdict(options)
    kind = f"{type(part).__module__}.{type(part).__qualname__}"
    plain = json.loads(json.dumps(told, sort_keys=True, default=str))
    return {"name": name, "class": kind, "options": plain, "weights": digest.hexdigest()}


def _bytes_of(tensor: Tensor) -> Iterator[Any]:
    """The numbers of a tensor as bytes, piece by piece, wherever it is."""
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), _CHUNK):
        yield flat[start : start + _CHUNK].cpu().contiguous().view(torch.uint8).numpy()
