"""Whether the parts of a composition and its weight files fit together, without allocating a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.checkpoint.load import RANDOM, check_frozen, declared_random, infer, unfilled
from vlm.checkpoint.strict import check_numbers, fit_strictly
from vlm.common.errors import UserError
from vlm.common.paths import exists, is_url, local_path
from vlm.common.registry import resolve
from vlm.config.schema import Problem
from vlm.models.build import build_model, check_images, check_positions
from vlm.models.trainable import check_globs
from vlm.models.vlm import VLM


def misfits(cfg: Any) -> list[Problem]:
    """What keeps the model of a checked configuration from being built and filled.

    The model is built on the device ``meta``; of the weight files, names and shapes are compared with it. Files that
    are not on this machine (missing, or an address) are left out.

    Args:
        cfg: a ``Config``.
    """
    named = [w for w in cfg.model.weights if w.path and w.format != RANDOM]
    entries = [w for w in named if not is_url(w.path) and exists(w.path)]
    try:
        loaders = [(entry, resolve("checkpoint_format", entry.format)(entry.into)) for entry in entries]
        model_cfg, _ = infer(cfg.model, loaders)
        model = build_model(model_cfg, device="meta")
        check_positions(model, model_cfg.text)
        check_images(model, model_cfg.image)
    except UserError as error:
        return [Problem("model", "", str(error))]
    problems, filled = _compare_all(cfg, model, loaders)
    for option, globs in (("run.lr_scale", cfg.run.lr_scale), ("run.weight_decay_on", cfg.run.weight_decay_on)):
        for glob in globs:
            try:
                check_globs(model, option, [glob] if glob != "*" else [])
            except UserError as error:
                place = cfg.origins.get(f"{option}.{glob}", cfg.origins.get(option, ""))
                problems.append(Problem(option, place, str(error)))
    if not problems and len(entries) == len(named):
        try:
            declared = declared_random(model, [w for w in cfg.model.weights if w.format == RANDOM])
            check_frozen(model, [name for name in unfilled(model, filled) if name not in declared])
        except UserError as error:
            problems.append(Problem("model.weights", cfg.origins.get("model.weights", ""), str(error)))
    return problems


def _compare_all(cfg: Any, model: VLM, loaders: Sequence[tuple[Any, Any]]) -> tuple[list[Problem], set[str]]:
    """Problems of the files, and our keys that they fill."""
    problems: list[Problem] = []
    filled: set[str] = set()
    for entry, loader in loaders:
        try:
            filled |= _compare(model, loader, local_path(entry.path), filled)
        except UserError as error:
            problems.append(Problem("model.weights", cfg.origins.get("model.weights", ""), str(error)))
    return problems, filled


def _compare(model: VLM, loader: Any, path: Path, filled: set[str]) -> set[str]:
    """Our keys that a file fills. Raises WeightsError: it does not fit."""
    tensors = {name: tensor.to("meta") for name, tensor in loader.read(path).items()}
    placement = loader.rename(model, tensors, str(path), filled)
    check_numbers(placement, tensors)
    return set(fit_strictly(model, placement, loader.hint).tensors)
