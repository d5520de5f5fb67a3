"""The optimiser over groups of parameters, and the gradient scaler for float16."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm.common import dist
from vlm.common.errors import ConfigError, UserError
from vlm.common.registry import resolve
from vlm.config.run import RunConfig
from vlm.models.trainable import check_globs, matching

EVERYTHING = ("*",)  # globs that select every parameter


@dataclass(frozen=True)
class Precision:
    """How a step computes: ``amp_dtype`` None means no autocast; ``scaled`` means float16 with a scaler."""

    amp_dtype: torch.dtype | None = None

    @property
    def scaled(self) -> bool:
        """Whether gradients need a scaler."""
        return self.amp_dtype == torch.float16


def pick_precision(amp: bool, amp_dtype: str, device: torch.device) -> Precision:
    """The precision for ``run.amp`` and ``run.amp_dtype`` (auto, bf16, fp16) on ``device``.

    ``auto`` is bf16 where the device computes it natively, else fp16.

    Raises:
        UserError: unknown ``amp_dtype``.
    """
    if not amp:
        return Precision(None)
    known = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if amp_dtype == "auto":
        amp_dtype = "bf16" if dist.supports_bf16(device) else "fp16"
    if amp_dtype not in known:
        raise UserError(f"run.amp_dtype={amp_dtype!r} (allowed: auto, bf16, fp16)")
    return Precision(known[amp_dtype])


Named = list[tuple[str, nn.Parameter]]


def split_parameters(model: nn.Module, decay_on: Sequence[str] = EVERYTHING) -> tuple[Named, Named]:
    """Trainable parameters with and without weight decay, each in ``named_parameters`` order.

    Without decay: tensors of rank < 2 (biases, norms, gates), names that a module declares itself
    (learned tokens and positions), and what no glob of ``decay_on`` selects.

    Raises:
        ConfigError: a glob selects nothing that trains.
    """
    named: Iterable[tuple[str, Any]] = model.named_modules()
    modules = [(prefix, m) for prefix, m in named if hasattr(m, "no_weight_decay")]  # timm's convention
    exempt = {f"{prefix}.{name}".lstrip(".") for prefix, m in modules for name in m.no_weight_decay()}
    training = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if tuple(decay_on) != EVERYTHING:
        check_globs(model, "run.weight_decay_on", decay_on)
        exempt |= training.keys() - {name for glob in decay_on for name in matching(training, glob)}
    exempt |= {name for name, parameter in training.items() if parameter.ndim < 2}
    plain = [(name, parameter) for name, parameter in training.items() if name in exempt]
    return [(name, parameter) for name, parameter in training.items() if name not in exempt], plain


def grouped(
    model: nn.Module, decay_on: Sequence[str] = EVERYTHING, lr_scale: Mapping[str, float] = {}
) -> list[tuple[Named, bool, float]]:
    """Trainable parameters by whether they decay (these first) and by the factor of their learning rate.

    Raises ConfigError: a glob selects nothing that trains.
    """
    parts = split_parameters(model, decay_on)
    check_globs(model, "run.lr_scale", lr_scale)
    factors = {name: 1.0 for part in parts for name, _ in part}
    for glob, factor in lr_scale.items():
        factors |= dict.fromkeys(matching(factors, glob), factor)
    return [
        ([(name, parameter) for name, parameter in part if factors[name] == factor], decays, factor)
        for part, decays in zip(parts, (True, False), strict=True)
        for factor in dict.fromkeys(factors[name] for name, _ in part)
    ]


def build_optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    beta2: float,
    device: torch.device,
    decay_on: Sequence[str] = EVERYTHING,
    lr_scale: Mapping[str, float] = {},
    name: str = "adamw",
) -> torch.optim.Optimizer:
    """The optimiser called ``name``, betas (0.9, ``beta2``); groups with decay before those without, none empty.

    ``decay_on`` and ``lr_scale``: see :func:`grouped`.

    Raises:
        UserError: nothing in the model is trainable.
        ConfigError: a glob selects nothing that trains, or what is registered under ``name`` makes no optimiser.
    """
    groups = [
        {"params": [p for _, p in part], "weight_decay": weight_decay if decays else 0.0, "lr_scale": factor}
        for part, decays, factor in grouped(model, decay_on, lr_scale)
    ]
    if not groups:
        raise UserError(
            "the model has no trainable parameter", fix="name some under model.train, for example ['bridge.*']"
        )
    made = resolve("optimizer", name)(groups, lr, (0.9, beta2), device)
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(
            f"run.optimizer={name!r} gave {type(made).__name__}, expected a torch.optim.Optimizer",
            fix="return one from the function that is registered under this name",
        )
    return made


def optimizer_of(model: nn.Module, run: RunConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser that the section ``run`` asks for. Raises as :func:`build_optimizer`."""
    return build_optimizer(
        model,
        lr=run.init_lr,
        weight_decay=run.weight_decay,
        beta2=run.beta2,
        device=device,
        decay_on=run.weight_decay_on,
        lr_scale=run.lr_scale,
        name=run.optimizer,
    )


def trainable_names(
    model: nn.Module, decay_on: Sequence[str] = EVERYTHING, lr_scale: Mapping[str, float] = {}
) -> list[str]:
    """Names of the trainable parameters in the order of the optimiser's state (decayed first)."""
    return [name for part, _, _ in grouped(model, decay_on, lr_scale) for name, _ in part]


def names_of(model: nn.Module, run: RunConfig) -> list[str]:
    """:func:`trainable_names` under the section ``run``: the order of the state of :func:`optimizer_of`."""
    return trainable_names(model, run.weight_decay_on, run.lr_scale)


def build_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """A gradient scaler; disabled (a pass-through) unless the precision is float16."""
    return torch.amp.GradScaler(device.type, enabled=precision.scaled)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group the learning rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
