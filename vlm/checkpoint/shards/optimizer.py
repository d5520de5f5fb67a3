"""The state of an optimiser by parameter name, so that it can be read under another split and in another order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.shards.parts import part_files
from vlm.checkpoint.shards.pieces import Piece, own_pieces
from vlm.checkpoint.shards.reader import PiecesReader
from vlm.common.errors import UserError, WeightsError
from vlm.common.processes.shards import fill, is_split, own

log = logging.getLogger(__name__)

State = dict[str, Any]
OTHER = "resume with the optimizer of the checkpoint's config.yaml, or start over in another run.output_dir"


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _is_split(value: Any, parameter: Tensor) -> bool:
    """Whether a value of the state is split as the parameter is or has a number for each of its, so stored in parts."""
    return isinstance(value, Tensor) and value.dim() > 0 and (is_split(value) or value.shape == parameter.shape)


def _room(parameter: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Zeros of ``shape``, whose rows are split over processes as those of ``parameter`` are."""
    like: Any = parameter.detach()
    if shape == parameter.shape:
        return torch.zeros_like(like, dtype=dtype)
    if not is_split(parameter):
        return torch.zeros(shape, dtype=dtype, device=parameter.device)
    rows = torch.zeros((len(own(parameter)), *shape[1:]), dtype=dtype, device=like.to_local().device)
    options: Any = {"shape": shape, "stride": torch.empty(shape, device="meta").stride(), "run_check": False}
    return type(like).from_local(rows, like.device_mesh, like.placements, **options)  # type: ignore[no-any-return]


def split_state(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> tuple[State, list[Piece]]:
    """What rank 0 stores of an optimiser's state, and the parts of its tensors that this process stores.

    Args:
        optimizer: over parameters some of which are split.
        names: of its parameters, in their order.

    Raises:
        UserError: its state of a split parameter cannot be split.
    """
    plain: dict[str, State] = {}
    kept: dict[str, list[str]] = {}
    pieces: list[Piece] = []
    for name, parameter in zip(names, _parameters(optimizer), strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            if _is_split(value, parameter):
                kept.setdefault(name, []).append(key)
                pieces += own_pieces(f"{key}/{name}", value)
            elif is_split(parameter) and isinstance(value, Tensor) and value.numel() > 1:
                raise UserError(
                    f"the optimizer's state {key!r} of {name} has another shape than the parameter, which is split "
                    "over processes",
                    fix="set run.optimizer=adamw, or run.parallel.shard=none",
                )
            else:
                plain.setdefault(name, {})[key] = value
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    return {"form": "parts", "groups": groups, "sizes": sizes, "plain": plain, "kept": kept}, pieces


def load_state(
    optimizer: torch.optim.Optimizer, names: Sequence[str], saved: State, saved_names: Sequence[str], folder: Path
) -> None:
    """Restore what :func:`split_state` or ``optimizer.state_dict()`` gave, under the present split.

    Args:
        optimizer: over the same parameters, split in any way.
        names: of its parameters, in their order.
        saved: from the checkpoint.
        saved_names: names of the checkpoint's parameters, in their order.
        folder: of the checkpoint.

    Raises:
        WeightsError: the state is of other parameters, or a part of it is missing.
    """
    if set(names) != set(saved_names):
        odd = sorted(set(names) ^ set(saved_names))
        raise WeightsError(f"{folder}: the optimizer's state is of other parameters, first {odd[0]}", fix=OTHER)
    factors = [group.get("lr_scale", 1.0) for group in optimizer.param_groups]
    parts = saved.get("form") == "parts"
    before = saved["groups"] if parts else saved["param_groups"]
    sizes = saved["sizes"] if parts else [len(group["params"]) for group in before]
    same = list(names) == list(saved_names) and sizes == [len(group["params"]) for group in optimizer.param_groups]
    if same and not parts and not any(is_split(p) for p in _parameters(optimizer)):
        optimizer.load_state_dict(saved)
    else:
        if parts:
            made = _from_parts(optimizer, names, saved, folder)
        else:
            made = _from_whole(optimizer, names, saved, saved_names)
        groups = optimizer.state_dict()["param_groups"]
        if same:
            groups = [{**old, "params": new["params"]} for old, new in zip(before, groups)]
        else:
            log.warning("%s has other groups of the optimizer: run.weight_decay_on and run.lr_scale count", folder)
        optimizer.load_state_dict({"state": made, "param_groups": groups})
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        group["lr_scale"] = factor  # as the configuration says now; files of before do not have it


def _from_parts(optimizer: torch.optim.Optimizer, names: Sequence[str], saved: State, folder: Path) -> dict[int, State]:
    reader = PiecesReader(part_files(folder))
    made: dict[int, State] = {}
    targets: dict[str, Tensor] = {}
    for i, (name, parameter) in enumerate(zip(names, _parameters(optimizer), strict=True)):
        state = dict(saved["plain"].get(name, {}))
        for key in saved["kept"].get(name, ()):
            stored = f"{key}/{name}"
            fact = reader.facts.get(stored)
            dtype = parameter.dtype if fact is None else fact.dtype
            shape = parameter.shape if fact is None else torch.Size(fact.shape)
            if fact is not None:  # before there is memory for what a file says
                reader.check(stored, shape, str(folder))
            state[key] = targets[stored] = _room(parameter, shape, dtype)
        if state:
            made[i] = state
    reader.read_into(targets, str(folder))
    return made


def _from_whole(
    optimizer: torch.optim.Optimizer, names: Sequence[str], saved: State, saved_names: Sequence[str]
) -> dict[int, State]:
    by_name = {name: saved["state"].get(i, {}) for i, name in enumerate(saved_names)}
    made: dict[int, State] = {}
    for i, (name, parameter) in enumerate(zip(names, _parameters(optimizer), strict=True)):
        state = dict(by_name[name])
        for key, value in state.items():
            by_rows = isinstance(value, Tensor) and value.dim() > 1 and len(value) == len(parameter)
            if is_split(parameter) and (by_rows or _is_split(value, parameter)):
                state[key] = _room(parameter, value.shape, value.dtype)
                fill(state[key], value)
        if state:
            made[i] = state
    return made
