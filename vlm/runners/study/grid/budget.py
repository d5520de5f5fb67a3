"""Steps from budgets: what a step of a run takes in samples, tokens and FLOPs, found without its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlm.common.dist import World
from vlm.common.errors import ConfigError, DataError
from vlm.common.owned import replace_text
from vlm.common.registry import resolve
from vlm.common.types import Batch
from vlm.config.api import Config
from vlm.models.precision import planned_for
from vlm.models.vlm import VLM
from vlm.processors.collate import VisualTokens
from vlm.processors.processor import build_processor
from vlm.runners.plan.batch import Lengths, from_lengths, positions_of, without_files
from vlm.runners.plan.depth import Stack, cut, stacks_of
from vlm.runners.plan.model import Faked, build_fake
from vlm.runners.study.file import Budget
from vlm.runners.study.grid.identity import hash_of, identity
from vlm.runners.train.optim import Precision
from vlm.runners.train.run import build_loader, epoch_length
from vlm.runners.train.speed.flops import NEAR, Count, FlopCounts, Size
from vlm.runners.train.step import amp_context
from vlm.tasks.base import Task

TOLERANCE = 0.01
"""Share by which a run may miss its budget, so that two are within 2 % of each other."""
FEWEST, MOST = 32, 256
"""Steps that are drawn from the data."""
SAMPLES = 4096
"""Samples after which no further step is drawn."""
COUNTS = frozenset({
    "task", "mixing", "batch_size", "global_batch", "accum_grad_iters", "packing", "group_by_length",
    "activation_checkpointing", "feature_cache", "max_steps", "max_epoch", "iters_per_epoch", "loss_reduction", "seed",
})  # fmt: skip
"""Keys of ``run`` that change what a step takes, or how many the file asks for."""
READERS = ("template", "text", "image", "video", "llm")
TRACED = 4
"""Steps of different size whose FLOPs are counted; others are scaled from the nearest."""
FILE = "step_sizes.json"
"""In the study's folder: what was found, so that it is found once."""


@dataclass(frozen=True)
class StepSize:
    """What an optimiser step takes on average, over all processes.

    Attributes:
        samples: of training.
        tokens: positions of the LLM's input without padding; 0: not asked for.
        flops: as the run's log counts them; 0: not asked for.
        steps: that the configuration itself asks for; None: its file says no length.
    """

    samples: float
    tokens: float = 0.0
    flops: float = 0.0
    steps: int | None = None


class Measurer:
    """Finds :class:`StepSize` of configurations; each is measured once.

    Args:
        processes: of every run.
        lengths: of the samples, where the data are not here; None: they are read.
        folder: of the study, where results are kept; None: they are not.
    """

    def __init__(self, processes: int, lengths: Lengths | None = None, folder: Path | None = None) -> None:
        self.processes, self.lengths = processes, lengths
        self.file = None if folder is None or lengths is not None else folder / FILE
        self.known: dict[str, StepSize] = read_sizes(self.file)
        self.drawn: dict[str, tuple[list[list[Batch]], int | None]] = {}
        self.last: tuple[str, Faked, list[Count]] | None = None

    def steps(self, config: Config, budget: Budget, reference: Config) -> int:
        """Steps of ``config`` that use ``budget`` up.

        Args:
            config: of a stage of a cell.
            budget: of the stage.
            reference: the stage's configuration in the reference cell, with its own length.

        Raises:
            ConfigError: whole steps miss the budget by more than 1 %, the reference says no length, or the warm-up
                is longer than the run.
            UserError: as :meth:`of`.
        """
        if budget.steps is not None:
            steps = budget.steps
        elif budget.flops == "reference":
            model = self.of(reference, budget)
            if model.steps is None:
                raise ConfigError(
                    "budget.flops: reference needs a reference that says how long it trains",
                    fix="set run.max_steps in its file or under set",
                )
            steps = steps_of(budget, self.of(config, budget), model.flops * model.steps)
        else:
            whole = next(value for value in vars(budget).values() if value is not None)
            steps = steps_of(budget, self.of(config, budget), whole)
        if config.run.warmup_steps >= steps:
            raise ConfigError(
                f"run.warmup_steps is {config.run.warmup_steps}, but the budget gives the run {steps} steps",
                fix="set run.warmup_steps lower, or raise the budget",
            )
        return steps

    def of(self, config: Config, budget: Budget) -> StepSize:
        """What a step of ``config`` takes of what the budget is about.

        Raises:
            DataError: the data cannot be read, and no lengths are given.
            UserError: the model cannot be built, or the data cannot be used.
        """
        if budget.samples is not None and (samples := declared_samples(config, self.processes)):
            return StepSize(samples, steps=config.run.total_steps)
        content = identity(config, None, self.processes, {})
        run = {key: value for key, value in content["run"].items() if key in COUNTS}
        parts = {key: content[key] for key in ("model", "train", "datasets", "processes") if key in content}
        key = f"{hash_of([parts, run])}-{'flops' if budget.flops is not None else 'tokens'}"
        if key not in self.known:
            reader = [{k: v for k, v in content["model"].items() if k in READERS}, parts.get("datasets"), run]
            model = [parts, {k: v for k, v in run.items() if k != "seed"}]
            self.known[key] = self.measure(config, hash_of(model), hash_of(reader), flops=budget.flops is not None)
            self._keep()
        return self.known[key]

    def measure(self, config: Config, model: str, reader: str, flops: bool) -> StepSize:
        """The average step of a run. Raises as :meth:`of`.

        Args:
            config: of the run.
            model: configurations with the same differ in their data order alone; what was counted is kept for the next.
            reader: configurations with the same have the same batches, but for what media take in the LLM.
            flops: whether they are asked for.
        """
        if self.last is None or self.last[0] != model:
            self.last = (model, build_fake(config, torch.device("cpu"), Precision()), [])
        (_, faked, counted), processes = self.last, self.processes
        tokens = VisualTokens.of(faked.model.visual_tokens, faked.model.counters())
        if self.lengths is not None:
            batches = from_lengths(config, faked.model, processes, self.lengths)
            drawn, steps, samples = [[batches.typical] * batches.micro], batches.steps, float(batches.samples)
        elif not config.datasets:
            raise DataError(
                "the budget depends on data that this configuration does not name",
                fix="set datasets.NAME.build_info, or describe the samples: --tokens 512 --images 1",
            )
        else:
            key = f"{reader} {tokens}"
            if key not in self.drawn:
                self.drawn[key] = draw(config, faked.model, tokens, processes)
            drawn, steps = self.drawn[key]
            samples = mean(sum(b.num_samples for b in step) for step in drawn) * processes
        positions = mean(sum(sum(positions_of(b, tokens)) for b in step) for step in drawn) * processes
        work = mean_flops(config, faked, drawn, counted) * processes if flops else 0.0
        return StepSize(samples, positions, work, steps)

    def _keep(self) -> None:
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.file, json.dumps({k: asdict(v) for k, v in self.known.items()}, indent=1) + "\n")


def read_sizes(file: Path | None) -> dict[str, StepSize]:
    """What was kept; nothing where the file is missing or damaged."""
    if file is None or not file.is_file():
        return {}
    try:
        return {key: StepSize(**value) for key, value in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def declared_samples(config: Config, processes: int) -> float | None:
    """Samples of a step, where the configuration alone says so; None: they depend on the data."""
    run = config.run
    if run.global_batch:
        return run.global_batch
    if run.packing is not None or run.mixing == "joint":
        return None
    entries = config.datasets or config.resolved.get("datasets") or {}
    sizes = {e.get("batch_size") or 1 if isinstance(e, Mapping) else e.batch_size for e in entries.values()}
    if run.batch_size is not None:
        sizes = {run.batch_size}
    return sizes.pop() * run.accum_grad_iters * processes if len(sizes) == 1 else None


def steps_of(budget: Budget, size: StepSize, whole: float) -> int:
    """Steps that come nearest to ``whole``, which is the budget as a number.

    Raises ConfigError: they miss it by more than 1 %.
    """
    kind = next(key for key, value in vars(budget).items() if value is not None)
    of_step = getattr(size, kind) if kind != "steps" else 1
    steps = max(1, round(whole / of_step))
    found = steps * of_step
    if abs(found - whole) > TOLERANCE * whole:
        raise ConfigError(
            f"a step takes {of_step:,.4g} {kind}, so that a run of whole steps cannot meet {whole:,.4g} within 1 %: "
            f"{steps} {'step takes' if steps == 1 else 'steps take'} {found:,.4g}",
            fix="a smaller batch_size (or global_batch), or a budget of at least 50 steps",
        )
    return steps


def draw(config: Config, model: VLM, tokens: VisualTokens, processes: int) -> tuple[list[list[Batch]], int | None]:
    """The first steps of a run, as its first process has them, and the steps that its file asks for."""
    processor = without_files(build_processor(config.model).within(model.positions, tokens))
    run = replace(config.run, num_workers=0, max_bad_share=1.0, max_cut_share=1.0)
    own = replace(config, run=run)
    loader = build_loader(own, processor, tokens, World(size=processes), torch.device("cpu"), None)
    steps: list[list[Batch]] = []
    most = min(MOST, run.total_steps or MOST)
    seen = 0
    while len(steps) < most and (len(steps) < FEWEST or seen < SAMPLES):
        steps.append([without_pixels(b) for b in loader.step(run.accum_grad_iters * max(1, len(loader.groups)))])
        seen += sum(batch.num_samples for batch in steps[-1])
    known = run.total_steps or loader.steps_per_epoch or run.iters_per_epoch
    length = (run.total_steps or run.max_epoch * epoch_length(own, loader)) if known else None
    loader.close()
    return steps, length


def without_pixels(batch: Batch) -> Batch:
    """``batch`` with the shape of its pixels only."""
    return replace(batch, pixels=None if batch.pixels is None else torch.zeros(1).expand(batch.pixels.shape))


def mean(values: Any) -> float:
    """Arithmetic mean."""
    listed = list(values)
    return sum(listed) / len(listed)


def mean_flops(config: Config, faked: Faked, drawn: Sequence[Sequence[Batch]], known: list[Count]) -> float:
    """FLOPs of a process in a step, on average over ``drawn``: some are counted, the others scaled, as in the log.

    ``known``: steps of this model that were counted; new ones are added.
    """
    counts = FlopCounts(faked.model)
    counts.known = known
    task = resolve("task", config.run.task)()
    for step in drawn:
        size = Size.of(step)
        near = any(count.size.distance(size) <= NEAR for count in counts.known)
        if not near and len(counts.known) < TRACED:
            counts.known.append(count_step(faked, task, step))
    return mean(counts.of(step) or 0.0 for step in drawn)


def count_step(faked: Faked, task: Task, batches: Sequence[Batch]) -> Count:
    """The FLOPs of a step through all layers, found from runs with few of them."""
    cutting = [stack for stack in stacks_of(faked.model) if stack.cuts]
    few = {stack.name: stack.few for stack in cutting}
    base = _count(faked, task, batches, few, cutting)
    visual, rest = float(base.visual), float(base.rest)
    for stack in cutting:
        more = _count(faked, task, batches, {**few, stack.name: stack.few + stack.period}, cutting)
        times = (stack.depth - stack.few) / stack.period
        visual += times * (more.visual - base.visual)
        rest += times * (more.rest - base.rest)
    return Count(base.size, round(visual), round(rest), base.visual_tokens)


def _count(
    faked: Faked, task: Task, batches: Sequence[Batch], depths: Mapping[str, int], cutting: list[Stack]
) -> Count:
    model, faking = faked.model, faked.faking
    counts = FlopCounts(model)
    with cut(model, depths, cutting), faking, planned_for("cpu"), counts.counting(batches):
        for batch in batches:
            with faking.fake:
                pixels = None if batch.pixels is None else torch.empty(batch.pixels.shape)
            fake = replace(batch, pixels=pixels)
            with amp_context(torch.device("cpu"), faked.precision):
                output = task.train_step(model, fake)
            (output.loss_sum * 1.0).backward()
    for parameter in model.parameters():
        parameter.grad = None
    return counts.known[0]
