"""Selection of the trainable parameters by globs over their names (``model.train``)."""

from __future__ import annotations

import difflib
import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

from vlm.common.errors import ConfigError
from vlm.models.lora import is_lora
from vlm.models.quantized.layers import source_parameters

Module = TypeVar("Module", bound=nn.Module)


def matching(names: Iterable[str], glob: str) -> list[str]:
    """Names selected by a glob.

    ``*`` crosses dots; a glob without wildcard also selects everything below it (``bridge.1``);
    ``<prefix>.lora`` selects the LoRA parameters below a prefix.
    """
    stem, _, last = glob.rpartition(".")
    if last == "lora":
        return [n for n in names if n.startswith(f"{stem}.") and is_lora(n)]
    return [n for n in names if fnmatch.fnmatchcase(n, glob) or n.startswith(f"{glob}.")]


def select_trainable(model: nn.Module, globs: Mapping[str, bool] | Iterable[str]) -> list[str]:
    """Freeze everything, then switch on (or, for False, off) what each glob selects, in order.

    Returns:
        The names of the trainable parameters, which are float32 from now on.

    Raises:
        ConfigError: a glob selects nothing (with the nearest names).
    """
    rules = globs.items() if isinstance(globs, Mapping) else [(glob, True) for glob in globs]
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    for glob, on in rules:
        chosen = matching(parameters, glob)
        if not chosen:
            raise ConfigError(f"model.train: {glob!r} selects no parameter; {_nearest(glob, parameters)}")
        for name in chosen:
            parameters[name].requires_grad_(bool(on) and parameters[name].is_floating_point())
    chosen = [name for name, parameter in parameters.items() if parameter.requires_grad]
    for name in chosen:
        parameters[name].data = parameters[name].data.float()
    model.train(model.training)
    return chosen


def check_globs(model: nn.Module, option: str, globs: Iterable[str]) -> None:
    """Raises ConfigError: a glob of ``option`` selects nothing that trains (with the nearest names)."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for glob in globs:
        if not matching(names, glob):
            raise ConfigError(f"{option}: {glob!r} selects nothing that trains; {_nearest(glob, names)}")


def _nearest(glob: str, names: Iterable[str]) -> str:
    prefixes = sorted({".".join(n.split(".")[:depth]) for n in names for depth in (1, 2, 3)})
    near = difflib.get_close_matches(glob.rstrip(".*"), prefixes, n=4, cutoff=0.3) or prefixes[:8]
    return "nearest: " + ", ".join(near)


def set_modes(model: Module, mode: bool) -> Module:
    """Like ``nn.Module.train``, but modules whose parameters are all frozen stay in eval mode."""
    _set_modes(model, mode, mode)
    return model


def _set_modes(module: nn.Module, mode: bool, inherited: bool) -> None:
    flags = [p.requires_grad for p in module.parameters()]
    module.training = mode and (any(flags) if flags else inherited)
    for child in module.children():
        _set_modes(child, mode, module.training)


def trainable_table(model: nn.Module) -> str:
    """Total and trainable parameters of each part, as a table for the log."""
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in source_parameters(model):
        pieces = name.split(".")
        key = ".".join(pieces[:2]) if pieces[0] in ("bridge", "inserts") else pieces[0]
        key += " (lora)" if is_lora(name) else ""
        rows[key][0] += parameter.numel()
        rows[key][1] += parameter.numel() if parameter.requires_grad else 0
    rows["total"] = [sum(r[0] for r in rows.values()), sum(r[1] for r in rows.values())]
    width = max(len(key) for key in rows)
    lines = [f"{'part':<{width}}  {'parameters':>15}  {'training':>13}"]
    lines += [f"{key:<{width}}  {total:>15,}  {on:>13,}" for key, (total, on) in rows.items()]
    return "\n".join(lines)
