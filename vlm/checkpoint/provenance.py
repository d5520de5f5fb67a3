"""The record stored with every checkpoint: where its weights came from, and what they depend on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.header import check_file
from vlm.checkpoint.safe import read_json
from vlm.common import VERSION
from vlm.common.errors import WeightsError
from vlm.common.processes.shards import rows_of
from vlm.models.quantized.layers import source_parameters
from vlm.models.quantized.probe import Probed, probe

FILE = "provenance.json"
OLD_FILE = "passport.json"
"""Its name up to version 0.1."""

PACKAGES = ("torch", "transformers", "timm", "peft", "safetensors", "sentencepiece", "tokenizers", "numpy")
"""Packages whose version can change what a model computes or how its files are read."""

KEY = "vlm.frozen"
"""In the metadata of ``model.safetensors``: the samples of the frozen parts, so that the file alone has them too."""

HASHED_ROWS = 8
"""Rows of a matrix that are hashed, evenly spaced."""

HASHED_MATRICES = 4
"""Matrices of a part that are hashed, evenly spaced over the part."""

ROUNDED = 2.0**-8 + 2.0**-10
"""Largest relative difference of two copies of a number, in float32, float16 or bfloat16, or rounded to both halves."""
HELD = (torch.float32, torch.float16, torch.bfloat16)
"""Types of matrices that are compared; quantised ones are not."""
SMALLEST = 2.0**-24
"""Absolute error that numbers close to zero may have besides: float16 knows none between 0 and this."""


def make_provenance(
    *,
    step: int,
    config: dict[str, Any],
    metrics: dict[str, float] | None = None,
    fingerprints: dict[str, Any] | None = None,
    trained: list[str] | None = None,
    hardware: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The record, JSON-ready.

    Args:
        step: optimiser steps done.
        config: the resolved configuration as plain values.
        metrics: the latest losses.
        fingerprints: hashes of the frozen parts.
        trained: names of the parameters that the checkpoint holds.
        hardware: device and number of processes.
    """
    versions = {"python": platform.python_version(), "vlm": VERSION}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    more = {"metrics": metrics or {}, "hardware": hardware or {}, "fingerprints": fingerprints or {}}
    return {"format": 1, "step": step, "versions": versions, **more, "trained": trained or [], "config": config}


def read_provenance(checkpoint: Path | None) -> dict[str, Any]:
    """The record of a checkpoint folder, also under the file name of version 0.1; empty without one.

    Raises WeightsError: the file is damaged.
    """
    files = [] if checkpoint is None else [checkpoint / FILE, checkpoint / OLD_FILE]
    file = next((f for f in files if f.is_file()), None)
    return {} if file is None else read_json(file)


def as_metadata(provenance: dict[str, Any]) -> dict[str, str]:
    """What is stored in the weight file itself: the samples of the frozen parts."""
    found = provenance.get("fingerprints") or {}
    kept = {part: {"sample": entry["sample"]} for part, entry in found.items() if "sample" in entry}
    return {KEY: json.dumps(kept)} if kept else {}


def recorded(weights: Path) -> dict[str, Any]:
    """The fingerprints of the run that wrote a weight file: in it, or in the record beside it; empty without one.

    Raises WeightsError: they are damaged.
    """
    if check_file(weights) == "safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(weights, "pt") as file:
                text = (file.metadata() or {}).get(KEY)
            found = None if text is None else json.loads(text)
        except (SafetensorError, ValueError, RecursionError) as error:
            raise WeightsError(f"{weights}: its metadata is damaged ({error})", fix="copy it again") from error
        if isinstance(found, dict):
            return found
    return read_provenance(weights.parent).get("fingerprints") or {}


def fingerprint(model: Any) -> dict[str, dict[str, Any]]:
    """``{"llm": {"parameters", "width", "vocab", "sha256"}, "vision": {...}, ...}`` of the parts with frozen weights.

    The hash of a few rows takes milliseconds at any size, and tells apart base models, vocabularies and revisions. It
    is of float32 values, so it does not depend on the storage dtype as long as that is exact. ``sample`` has a few
    numbers of a few matrices: they are recognised in any floating-point type, container and number of shards, with LoRA
    or without, and quantised or not, as those of a quantised matrix are from before.
    """
    result: dict[str, dict[str, Any]] = {}
    parts = {"vision": model.vision, "llm": model.llm, **{f"bridge.{i}": p for i, p in enumerate(model.bridge)}}
    parts |= {f"inserts.{i}": p for i, p in enumerate(model.inserts)}
    for name, part in parts.items():
        frozen = [] if part is None else [(n, p) for n, p in source_parameters(part) if not p.requires_grad]
        if not frozen:
            continue
        result[name] = {"parameters": sum(p.numel() for _, p in frozen), "sha256": _hash(frozen)}
        if sample := _sample(frozen):
            result[name]["sample"] = sample
    if "llm" in result:
        result["llm"] |= {"width": model.llm.hidden_size, "vocab": model.llm.vocab_size}
    if "vision" in result:
        result["vision"] |= {"width": model.vision.out_dim, "image_size": model.vision.image_size}
    return result


def samples(model: Any) -> dict[str, dict[str, Any]]:
    """A few numbers of every part, frozen or not, as :func:`fingerprint` has them, for :func:`other_numbers`."""
    parts: dict[str, list[tuple[str, Tensor | Probed]]] = {}
    for name, parameter in source_parameters(model):
        part = ".".join(name.split(".")[: 2 if name.startswith(("bridge.", "inserts.")) else 1])
        parts.setdefault(part, []).append((name.removeprefix(f"{part}."), parameter))
    return {part: {"sample": sample} for part, named in parts.items() if (sample := _sample(named))}


def differences(stored: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> list[str]:
    """Descriptions of how the frozen parts of a checkpoint's run differ from the present ones."""
    lines = []
    for part, old in stored.items():
        new = found.get(part, {})
        changed = [f"{key} {old[key]} -> {new.get(key)}" for key in old if key != "sample" and old[key] != new.get(key)]
        if changed:
            lines.append(f"{part}: {', '.join(changed)}")
    return lines


def other_numbers(
    stored: dict[str, dict[str, Any]], model: Any, filled: Collection[str], file: str = FILE
) -> dict[str, str]:
    """Part -> how the numbers that a checkpoint's run recorded of its frozen part differ from those of ``model``.

    Numbers count as equal if rounding to a half-precision type explains their difference. A part of which nothing was
    recorded (by earlier versions) or that has other shapes is not compared.

    Args:
        stored: the fingerprints in the checkpoint's provenance.
        model: the composition, with that checkpoint loaded.
        filled: our keys that files have filled; no other parameter is compared.
        file: name for messages.

    Raises:
        WeightsError: the record is damaged.
    """
    result, named = {}, source_parameters(model)
    for part, old in stored.items():
        start = f"{part}."
        have = {_plain(n.removeprefix(start)): p for n, p in named if n.startswith(start)}
        known = {_plain(n.removeprefix(start)) for n in filled if n.startswith(start)}
        try:
            compared, odd = _compare(old.get("sample") or {}, {n: p for n, p in have.items() if n in known})
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            text = f"{file}: the fingerprint of {part} is damaged ({type(error).__name__}: {error})"
            raise WeightsError(text, fix="copy the checkpoint again") from error
        if odd:
            name, before, now = odd[0]
            numbers = f"{len(odd)} of {compared} numbers differ"
            result[part] = f"{numbers}, in {name} it had {before:.6g} where {now:.6g} is now"
    return result


def _compare(
    recorded: dict[str, dict[str, Any]], have: Mapping[str, Tensor | Probed]
) -> tuple[int, list[tuple[str, float, float]]]:
    """How many numbers were compared, and name, recorded and present value of those that differ."""
    compared, odd = 0, []
    for name, record in recorded.items():
        tensor, shape = have.get(name), [int(n) for n in record["shape"]]
        if tensor is None or not _fits(tensor, shape):
            continue
        values, was = _values(tensor, shape), torch.tensor(record["values"], dtype=torch.float32)
        if was.shape != values.shape:
            raise ValueError(f"{len(was)} numbers of {name}, expected {len(values)}")
        wrong = (values - was).abs() > ROUNDED * torch.maximum(values.abs(), was.abs()) + SMALLEST
        compared += len(was)
        odd += [(name, float(a), float(b)) for a, b, w in zip(was, values, wrong) if w]
    return compared, odd


def _plain(name: str) -> str:
    """The name of a parameter before LoRA wraps its layer."""
    return name.replace(".base_layer.", ".")


def _sample(named: list[tuple[str, Tensor | Probed]]) -> dict[str, dict[str, Any]]:
    matrices = [(n, p) for n, p in named if p.dim() == 2 and _held(p)]
    chosen = matrices[:: max(1, len(matrices) // HASHED_MATRICES)]
    return {
        _plain(name): {
            "shape": list(tensor.shape),
            "values": [float(f"{value:.9g}") for value in _values(tensor, tensor.shape).tolist()],  # exact for float32
        }
        for name, tensor in chosen
    }


def _held(tensor: Tensor | Probed) -> bool:
    return isinstance(tensor, Probed) or tensor.dtype in HELD


def _values(tensor: Tensor | Probed, shape: Sequence[int]) -> Tensor:
    """See :func:`probe`."""
    return tensor.values if isinstance(tensor, Probed) else probe(tensor, shape)


def _fits(tensor: Tensor | Probed, shape: Sequence[int]) -> bool:
    """Whether a matrix can be compared with one of this shape: as wide, and with at least half its rows."""
    if isinstance(tensor, Probed):
        return list(tensor.shape) == list(shape)
    wide = tensor.dim() == 2 and _held(tensor) and tensor.shape[1] == shape[1]
    return wide and 2 * len(tensor) > shape[0]


def _hash(named: list[tuple[str, Tensor | Probed]]) -> str:
    digest = hashlib.sha256()
    matrices = [(n, p) for n, p in named if p.dim() >= 2 and (isinstance(p, Probed) or p.is_floating_point())] or named
    step = max(1, len(matrices) // HASHED_MATRICES)
    for name, tensor in matrices[::step]:
        digest.update(f"{name}{list(tensor.shape)}".encode())
        if isinstance(tensor, Probed):
            digest.update(tensor.values.numpy().tobytes())
            continue
        rows = torch.linspace(0, len(tensor) - 1, min(HASHED_ROWS, len(tensor))).long()
        values = rows_of(tensor, rows).float().cpu()
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
