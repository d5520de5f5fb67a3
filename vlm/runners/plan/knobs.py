"""What would save memory, found by planning again; and the largest batch or the least sharding that fits."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vlm.common.errors import ConfigError, UserError
from vlm.models.llm.hf import HFCausalLM
from vlm.models.lora import LoraOptions
from vlm.runners.plan.batch import batch_size_of, with_batch_size
from vlm.runners.plan.devices import GIB
from vlm.runners.plan.plan import Plan, Planner, Request

MOST = 4096
"""Largest batch that is tried."""
SHARDS = ("none", "llm", "all")


@dataclass(frozen=True)
class Knob:
    """A change, and what came of it."""

    change: str  # as for --options
    peak: int
    saved: int
    fits: bool
    seconds: float  # of a step


def turn(cfg: Any, request: Request, plan: Plan) -> list[Knob]:
    """Every change that applies, planned; the one that saves most comes first."""
    found = []
    for change, other in changes(cfg, request.processes):
        try:
            own = Planner(other, request).plan()
        except UserError:
            continue  # a combination that a run would refuse, too
        found.append(Knob(change, own.peak, plan.peak - own.peak, own.fits, own.seconds))
    return sorted((k for k in found if k.saved > 0), key=lambda knob: knob.saved, reverse=True)


def changes(cfg: Any, processes: int) -> Iterator[tuple[str, Any]]:
    """(options, the configuration with them) of what this configuration does not do yet."""
    run, options = cfg.run, cfg.model.llm.config
    if run.activation_checkpointing == "none":
        yield "run.activation_checkpointing=torch", _with_run(cfg, activation_checkpointing="torch")
    if not run.amp:
        yield "run.amp=true run.amp_dtype=bf16", _with_run(cfg, amp=True, amp_dtype="bf16")
    if (size := batch_size_of(cfg)) > 1:
        smaller = with_batch_size(cfg, -(-size // 2))
        same = {} if run.global_batch else {"accum_grad_iters": 2 * run.accum_grad_iters}
        told = "".join(f" run.{key}={value}" for key, value in same.items())
        yield f"batch_size={-(-size // 2)}{told}", _with_run(smaller, **same)
    if isinstance(options, HFCausalLM.Config):
        yield from _of_llm(cfg, options)
    if processes > 1:
        for shard in SHARDS[SHARDS.index(run.parallel.shard) + 1 :]:
            yield f"run.parallel.shard={shard}", _with_run(cfg, parallel=replace(run.parallel, shard=shard))


def _of_llm(cfg: Any, options: HFCausalLM.Config) -> Iterator[tuple[str, Any]]:
    adapted = [key for key, on in _rules(cfg) if on and key.startswith("llm") and "lora" not in key]
    if options.quantize is None and not adapted:
        yield "model.llm.quantize=nf4", _with_llm(cfg, quantize="nf4")
    if adapted and options.lora is None:
        rules = {key: on for key, on in _rules(cfg) if key not in adapted}
        lora = LoraOptions(r=16, alpha=32, targets="all-linear")
        other = _with_llm(cfg, lora=lora)
        other = replace(other, model=replace(other.model, train={**rules, "llm.lora": True}))
        yield "LoRA: model.llm.lora={r: 16, alpha: 32, targets: all-linear}, model.train llm.lora for the LLM", other


def _rules(cfg: Any) -> list[tuple[str, bool]]:
    train = cfg.model.train
    return list(train.items()) if isinstance(train, dict) else [(glob, True) for glob in train]


def _with_run(cfg: Any, **values: Any) -> Any:
    return replace(cfg, run=replace(cfg.run, **values))


def _with_llm(cfg: Any, **values: Any) -> Any:
    part = copy.copy(cfg.model.llm)
    part.config = dataclasses.replace(part.config, **values)
    return replace(cfg, model=replace(cfg.model, llm=part))


def solve_batch_size(planner: Planner) -> Plan:
    """The plan with the largest micro-batch that fits, up to :data:`MOST` or a process's part of ``run.global_batch``.

    Raises ConfigError: not even one sample fits; says what would be needed.
    """

    def at(size: int) -> Plan:
        return planner.plan(with_batch_size(planner.cfg, size))

    best = at(1)
    if not best.fits:
        raise ConfigError(
            f"--solve batch_size: one sample does not fit on {best.device}: {best.peak / GIB:.1f} GiB are needed, "
            f"{best.capacity / GIB:.1f} are there",
            fix="see the table of what saves most without --solve, or choose another --gpu",
        )
    whole = planner.cfg.run.global_batch
    return _search(best, at, MOST if whole is None else min(MOST, -(-whole // planner.request.processes)))


def _search(best: Plan, at: Callable[[int], Plan], most: int = MOST) -> Plan:
    """Largest fitting plan: guess by the slope of the last two, then halve what is left."""
    low, high = best, most + 1
    guess = 2
    while low.batch_size + 1 < high:
        other = at(guess)
        if other.fits:
            slope = max(1, (other.peak - low.peak) // max(1, other.batch_size - low.batch_size))
            low = other
            guess = min(low.batch_size + max(1, low.free // slope), high - 1)
        else:
            high = guess
            slope = max(1, (other.peak - low.peak) // (other.batch_size - low.batch_size))
            guess = low.batch_size + min(max(1, low.free // slope), (high - low.batch_size) // 2 or 1)
        guess = max(low.batch_size + 1, min(guess, high - 1))
    return low


def solve_shard(cfg: Any, request: Request) -> Plan:
    """The plan with the least sharding that fits.

    Raises ConfigError: one process only, or nothing fits; says what would be needed.
    """
    if request.processes < 2:
        raise ConfigError("--solve shard: the plan is for one device, and shards need several", fix="--gpus 8")
    found = []
    for shard in SHARDS:
        parallel = replace(
            cfg.run.parallel, shard=shard, replicate=1 if shard == "none" else cfg.run.parallel.replicate
        )
        found.append(Planner(_with_run(cfg, parallel=parallel), request).plan())
        if found[-1].fits:
            return found[-1]
    least = min(found, key=lambda plan: plan.peak)
    raise ConfigError(
        f"--solve shard: not even shard={least.settings['shard']} fits on {request.processes} x {least.device}: "
        f"{least.peak / GIB:.1f} GiB are needed on each, {least.capacity / GIB:.1f} are there",
        fix="more devices, a smaller batch, or what saves most (the table without --solve)",
    )
