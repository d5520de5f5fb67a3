"""A configuration -> a model with every file of ``weights:`` loaded, strictly."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from vlm.checkpoint.formats.base import CheckpointFormat
from vlm.checkpoint.strict import copy_strictly
from vlm.common.errors import WeightsError
from vlm.common.paths import local_path
from vlm.common.registry import resolve
from vlm.models.build import build_model, set_precision
from vlm.models.llm.hf import HFCausalLM
from vlm.models.lora import LoraTargetError
from vlm.models.quantize import quantize_llm
from vlm.models.trainable import select_trainable, trainable_table
from vlm.models.vlm import VLM

log = logging.getLogger(__name__)

RANDOM = "random"
"""``{format: random, into: vision}`` declares that a part starts from its random initialisation."""


def load_model(cfg: Any, *, device: torch.device | str, dtype: torch.dtype | None = None) -> VLM:
    """Build the composition and fill it from its files.

    Args:
        cfg: a ``Config``.
        device: where the model will be.
        dtype: storage of frozen weights instead of each part's own.

    Raises:
        WeightsError: a file is missing, damaged, unsafe or does not fit; or a frozen part has no file.
        ConfigError: the composition does not fit together.
    """
    files = [w for w in cfg.model.weights if w.path or w.format == RANDOM]
    loaders = [(w, resolve("checkpoint_format", w.format)(w.into)) for w in files if w.format != RANDOM]
    model_cfg, sources = cfg.model, []
    full = [(weight, loader) for weight, loader in loaders if isinstance(loader, CheckpointFormat)]
    for weight, loader in full:
        inferred = loader.infer_config(model_cfg, resolve_path(weight.path))
        sources += [str(weight.path)] if inferred is not model_cfg else []
        model_cfg = inferred
    options = model_cfg.llm.config
    quantized = options.quantize if isinstance(options, HFCausalLM.Config) else None
    covered = [part for _, loader in full for part in loader.covered_parts(model_cfg)]
    try:
        model = build_model(model_cfg, device="cpu" if quantized else device, dtype=dtype, uninitialised=covered)
    except LoraTargetError as error:
        if not sources:
            raise
        text = f"{', '.join(sources)}: LoRA for layers that this composition does not have"
        raise WeightsError(f"{text}: {error}") from error
    declared = tuple(f"{w.into}." for w in files if w.format == RANDOM and w.into)
    filled = {name for name, _ in model.named_parameters() if f"{name}.".startswith(declared)}
    for weight, loader in loaders:
        filled |= load_file(model, loader, resolve_path(weight.path), filled)
    _check_frozen(model, filled)
    if quantized:
        quantize_llm(model.llm, quantized, torch.device(device))
        model.to(device)
        select_trainable(model, model_cfg.train)
        set_precision(model, model_cfg, dtype)
    log.info("%s", trainable_table(model))
    return model.eval()


def load_file(model: VLM, loader: Any, path: Path, filled: set[str] | frozenset[str] = frozenset()) -> set[str]:
    """Fill ``model`` from one file and return our keys that were filled. Raises as :func:`.strict.copy_strictly`."""
    tensors = loader.read(path)
    placement = loader.rename(model, tensors, str(path), filled)
    done = copy_strictly(model, placement, loader.hint)
    log.info("%s: %d tensors from %s", type(loader).__name__, len(done), path)
    return done


def resolve_path(path: str) -> Path:
    """A local path; an address is downloaded once. Raises WeightsError if there is nothing there."""
    try:
        result = local_path(path)
    except OSError as error:
        text = f"weights: {path} cannot be fetched ({error})"
        raise WeightsError(text, fix="download it and give its path") from error
    if not result.exists():
        raise WeightsError(f"weights: {result} does not exist", fix="check the path, or download the file first")
    return result


def _check_frozen(model: VLM, filled: set[str]) -> None:
    """Raises WeightsError if a frozen matrix is random: no file filled it, and its part is not declared ``random``."""
    tied = {id(p) for n, p in model.named_parameters(remove_duplicate=False) if n in filled}
    bare = [
        name
        for name, p in model.named_parameters()
        if not p.requires_grad and p.dim() > 1 and name not in filled and id(p) not in tied
    ]
    if bare:
        parts = sorted({".".join(n.split(".")[: 2 if n.startswith(("bridge", "inserts")) else 1]) for n in bare})
        raise WeightsError(
            f"{', '.join(parts)}: frozen, but no file of model.weights fills it ({len(bare)} tensors, first {bare[0]})",
            fix=f"add its weight file to model.weights, train it, or declare {{format: random, into: {parts[0]}}}",
        )
