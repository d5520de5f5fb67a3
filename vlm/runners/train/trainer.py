"""The training loop: steps, validation, checkpoints, early stop, stop signals, exact resume."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm.checkpoint.run_folder import RunDir
from vlm.common import dist
from vlm.common.registry import register_runner
from vlm.config.run import RunConfig
from vlm.datasets.loading import data_stats
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.runners.train.evaluate import TrainingEvaluations
from vlm.runners.train.loss_weighting import LossReduction
from vlm.runners.train.optim import build_scaler, optimizer_of, pick_precision
from vlm.runners.train.parallel.copies import spread_of, wrap
from vlm.runners.train.saving import Progress, Saving
from vlm.runners.train.schedule import Plan, build_schedule
from vlm.runners.train.signals import StopSignals
from vlm.runners.train.speed.compiled import compile_model
from vlm.runners.train.speed.meter import Meter
from vlm.runners.train.speed.profile import Profile
from vlm.runners.train.step import Stepper, StepStats
from vlm.runners.train.trackers import Tracker
from vlm.runners.train.validate import Validator
from vlm.runners.train.watch.spikes import SpikeGuard
from vlm.runners.train.watch.stalls import Watchdog
from vlm.tasks.base import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    path: Path
    status: str  # ``finished``, ``early_stop``, or ``stopped`` by a signal after saving
    step: int  # optimiser steps done
    loss: float  # of the last step, mean per supervised token
    best_loss: float | None = None  # lowest validation loss, if there was one
    seconds: float = 0.0
    received: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal's number (143 for SIGTERM, 130 for SIGINT) when a signal ended the run.

        The run is saved in either case; ``run.resume=auto`` resumes it.
        """
        return 0 if self.received is None else 128 + int(self.received)


@register_runner("runner_base")
@dataclass(eq=False, repr=False)
class Trainer:
    """Trains ``model`` on batches of ``loader`` as ``run`` (the configuration's run section) says.

    Raises:
        UserError: no parameter is trainable, or an option of ``run`` is not allowed.
    """

    model: nn.Module  # on ``device``, trainable parameters chosen
    loader: TrainLoader  # endless batches of this process
    task: Task  # computes the loss of a batch
    run: RunConfig
    _: KW_ONLY
    run_dir: RunDir  # prepared
    device: torch.device  # of this process
    epoch_steps: int  # optimiser steps of an epoch
    groups: tuple[str, ...] = ()  # whose batches ``loader`` gives in turn; a micro-step has one batch of each
    validator: Validator | None = None  # None: no validation
    evaluations: TrainingEvaluations | None = None  # None: no benchmark while training
    config: dict[str, Any] = field(default_factory=dict)  # resolved, stored with every checkpoint
    config_text: str = ""  # the same as YAML
    fingerprints: dict[str, Any] = field(default_factory=dict)  # hashes of the frozen parts' files, for the provenance

    def __post_init__(self) -> None:
        """Build optimiser, schedule and wrapper."""
        run, model, device = self.run, self.model, self.device
        self.total_steps = run.max_steps or run.max_epoch * self.epoch_steps
        self.progress = Progress()
        precision = pick_precision(run.amp, run.amp_dtype, device)
        if run.compile:
            compile_model(model, device)
        self.optimizer = optimizer_of(model, run, device)
        self.scaler = build_scaler(precision, device)
        names = ("init_lr", "min_lr", "warmup_lr", "warmup_steps", "warmup_restarts")
        rates: dict[str, Any] = {name: vars(run)[name] for name in names} | {"decay_rate": run.lr_decay_rate}
        plan = Plan(**rates, total_steps=self.total_steps, epoch_steps=self.epoch_steps)
        self.schedule = build_schedule(run.lr_sched, plan)
        self.guard = SpikeGuard(run.on_spike, run.spike, self.run_dir.path)
        self.watchdog = Watchdog(run.stall_seconds)
        self.meter = Meter(model, device, precision.amp_dtype or torch.float32)
        self.profile = Profile(run.profile, self.run_dir.path)
        options = {"find_unused_parameters": run.find_unused_parameters, "broadcast_buffers": run.broadcast_buffers}
        self.spread = spread_of(model, wrap(model, **options))
        self.stepper = Stepper(
            self.spread,
            self.task,
            self.optimizer,
            self.scaler,
            device=device,
            precision=precision,
            max_grad_norm=run.max_grad_norm,
            reduction=LossReduction(run.loss_reduction, self.groups),
            guard=self.guard,
            uneven=run.global_batch is not None and dist.world_size() > 1,
        )
        self.saving = Saving(self)
        self.step_batches = run.accum_grad_iters * max(1, len(self.groups))

    def fit(self, trackers: list[Tracker] | None = None) -> RunResult:
        """Train until the last step, an early stop or a stop signal; the final state is always saved.

        Raises NonFiniteLossError: names step and samples; earlier checkpoints are kept.
        """
        trackers = trackers or []
        self.model.train()
        status, saved_step = "finished", self.progress.step
        with ExitStack() as closing:
            for tracker in trackers[::-1]:
                closing.callback(tracker.close)
            closing.callback(self.watchdog.close)
            closing.callback(self.profile.close)
            with StopSignals() as signals, self.saving:
                while self.progress.step < self.total_steps:
                    self.saving.check()
                    stats = self._step(trackers, signals.requested)
                    stopping = stats.stop or (dist.world_size() == 1 and signals.requested)
                    improved = not stopping and self._judge(trackers)
                    patience = self.run.early_stop
                    early = patience > 0 and self.progress.bad_validations >= patience
                    if stopping or early or improved or self._due(self.run.save_freq):
                        with self.watchdog.watching(self.progress.step, "saving"):
                            self.saving.save(improved)
                        saved_step = self.progress.step
                    if stopping or early:
                        status = "stopped" if stopping else "early_stop"
                        break
                received = signals.received if status == "stopped" else None
                if status == "stopped" and received is None:
                    received = signal.SIGTERM  # another process of the group received it
        if data := self._data_report():
            log.info("data of this run:\n%s", data_stats.report_table(data))
        if spikes := self.guard.summary():
            log.info("%s", spikes)
        progress = self.progress
        log.info("%s after step %d (last checkpoint: step %d)", status, progress.step, saved_step)
        best = progress.best_loss if math.isfinite(progress.best_loss) else None
        return RunResult(self.run_dir.path, status, progress.step, progress.loss, best, progress.seconds, received)

    def _step(self, trackers: list[Tracker], stop: bool) -> StepStats:
        """Fetch the micro-batches of one step, train on them, log."""
        started, number = time.perf_counter(), self.progress.step + 1
        with self.watchdog.watching(number, "reading data"):
            batches = self.loader.step(self.step_batches)
        fetched = time.perf_counter()
        lr = self.schedule(self.progress.step)
        names = [name for batch in batches for name in batch.sample_ids]
        watching, counting = self.watchdog.watching(number, "computing", names), self.meter.counting(batches)
        with watching, self.profile.step(number), counting:
            stats = self.stepper(batches, step=number, lr=lr, stop=stop)
        seconds = time.perf_counter() - started
        self.progress.step += 1
        self.progress.samples += stats.samples
        self.progress.seconds += seconds
        self.progress.loss = stats.loss
        record = {
            "kind": "train",
            "step": self.progress.step,
            "epoch": (self.progress.step - 1) // self.epoch_steps,
            "loss": stats.loss,
            **{f"loss_{name}": part for name, part in stats.parts.items()},
            "lr": lr,
            "grad_norm": stats.grad_norm,
            "targets": stats.targets,
            "tokens": stats.tokens,
            "samples": stats.samples,
            "seconds": seconds,
            "data_seconds": fetched - started,
            "memory_mib": dist.peak_memory_mib(self.device),
            "skipped": int(stats.skipped),
            **self.meter(batches, stats, seconds),
        }
        if self.progress.step % self.run.log_freq == 0 or self.progress.step == self.total_steps:
            record |= data_stats.to_metrics(self._data_report())
        self._tell(trackers, record)
        if stats.spike is not None:
            spike = stats.spike.record(stats.skipped, stats.spike_samples)
            self._tell(trackers, {"kind": "spike", "step": self.progress.step, **spike})
        return stats

    def _data_report(self) -> data_stats.DataReport:
        """What all processes have trained on; a collective call."""
        return data_stats.combine(dist.gather_objects(self.loader.report()))

    def _due(self, every: int) -> bool:
        step = self.progress.step
        return step % (every if every > 0 else self.epoch_steps) == 0 or step == self.total_steps

    def _judge(self, trackers: list[Tracker]) -> bool:
        """Validate and evaluate where it is time; returns whether ``run.best`` is better than ever before."""
        found: dict[str, float] = {}
        if self.validator is not None and self._due(self.run.val_freq):
            with self.watchdog.watching(self.progress.step, "validating"):
                self.progress.valid = found = self.validator()
            self._tell(trackers, {"kind": "valid", "step": self.progress.step, **found})
        due = self.evaluations.due(self.progress.step, self.epoch_steps, self.total_steps) if self.evaluations else []
        if self.evaluations and due:
            with self.watchdog.watching(self.progress.step, "evaluating"):
                self.progress.scores |= (scores := self.evaluations(due))
            self._tell(trackers, {"kind": "eval", "step": self.progress.step, **scores})
            found = found | scores
        return self._is_best(found)

    def _is_best(self, found: Mapping[str, float]) -> bool:
        """Whether the value of ``run.best`` is among ``found``, and better than before; counts those that are not."""
        progress, name = self.progress, self.run.best.removeprefix("-")
        if name not in found:
            self._warn_of_best(found, name)
            return False
        if name == "loss":
            improved = found["loss"] < progress.best_loss
            progress.best_loss = min(found["loss"], progress.best_loss)
        else:
            score = -found[name] if self.run.best.startswith("-") else found[name]
            improved = progress.best_score is None or score > progress.best_score
            progress.best_score = score if improved else progress.best_score
        progress.bad_validations = 0 if improved else progress.bad_validations + 1
        return improved

    def _warn_of_best(self, found: Mapping[str, float], name: str) -> None:
        """Say it if the dataset of ``run.best`` was asked and has no such score, so that no checkpoint gets best."""
        known = [key for key in found if key.partition("/")[0] == name.partition("/")[0]]
        if known:
            log.warning("run.best=%s is not among the scores: no checkpoint is the best (%s)", name, ", ".join(known))

    def _tell(self, trackers: list[Tracker], record: dict[str, Any]) -> None:
        """Pass a record to all trackers. Raises UserError: one cannot write, e.g. because the disk is full."""
        with self.run_dir.written("the log"):
            for tracker in trackers:
                tracker.log(record)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of the current step and wait until it is there; a collective call."""
        with self.watchdog.watching(self.progress.step, "saving"):
            self.saving.save(best)
            self.saving.wait()

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint folder exactly as if the run had not been interrupted.

        Raises:
            WeightsError: the checkpoint is damaged, or has other trainable parameters or other frozen weights.
            DataError: the data has changed.
        """
        self.saving.resume(folder)
