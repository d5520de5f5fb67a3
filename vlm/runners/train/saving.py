"""Checkpoints of a training run: writing one, and continuing from one."""

from __future__ import annotations

import logging
import math
import platform
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.checkpoint.provenance import differences, make_provenance, read_provenance
from vlm.checkpoint.run_files import STATE
from vlm.checkpoint.run_folder import Join, check_plain, read_state
from vlm.checkpoint.shards.optimizer import load_state, split_state
from vlm.checkpoint.shards.parts import Parts
from vlm.checkpoint.shards.pieces import is_sharded, own_pieces
from vlm.checkpoint.train_state import (
    capture_rng,
    load_trainable,
    restore_rng,
    stored_parameters,
    trainable_tensors,
)
from vlm.common import dist
from vlm.common.errors import UserError, WeightsError
from vlm.common.processes.background import Background, host_copy
from vlm.datasets.loading.mixing import derive_seed
from vlm.runners.train.optim import names_of

if TYPE_CHECKING:
    from vlm.runners.train.trainer import Trainer

log = logging.getLogger(__name__)

_SAVES = count(1)
"""Numbers the saves of a process in parts, the same ones in all processes of a group."""


@dataclass
class Progress:
    """Counters of a run; part of its checkpoints."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    best_loss: float = math.inf
    best_score: float | None = None  # of run.best where that is a score; larger is better
    bad_validations: int = 0
    valid: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)  # of run.eval


class Saving:
    """Saves and resumes the run of a trainer.

    A save copies what it needs to host memory; a thread writes it while training goes on. Used as a context, it ends
    when everything is written.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._writing = Background("checkpoint")

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.wait()
        elif (fault := self._writing.fault()) is not None:
            log.error("the last checkpoint was not written: %s", fault)
        self._writing.close()

    def check(self) -> None:
        """Raise the fault of a save that has ended meanwhile. Raises UserError."""
        self._writing.check()

    def wait(self) -> None:
        """Wait until the last save is written; a collective call. Raises UserError on every process if it failed."""
        fault = self._writing.fault()
        if fault is not None and not isinstance(fault, UserError):
            raise fault
        found = [f for f in dist.gather_objects(fault) if f is not None]
        if found:
            raise fault or found[0]

    def save(self, best: bool = False) -> None:
        """Begin to write a checkpoint of the current step; a collective call.

        Raises UserError: the save before failed.
        """
        self.wait()
        trainer = self.trainer
        own = {"rng": capture_rng(trainer.device), "loader": trainer.loader.state_dict()}
        trainer.stepper.spread.settle()
        sharded = is_sharded(trainer.model)
        ranks = dist.gather_objects(own)
        work = self._begin() if sharded else None
        if not (sharded or dist.is_main()):
            return
        names = names_of(trainer.model, trainer.run)
        tensors: dict[str, torch.Tensor] | Join
        if work is None:
            tensors, optimizer = trainable_tensors(trainer.model), trainer.optimizer.state_dict()
        else:
            optimizer, states = split_state(trainer.optimizer, names)
            weights = [piece for name, p in stored_parameters(trainer.model) for piece in own_pieces(name, p)]
            parts = Parts(work, str(next(_SAVES)), weights, states)
            if not dist.is_main():
                self._writing.start(parts.write)
                return
            tensors = parts.join
        state = {
            "progress": vars(trainer.progress),
            "accum_grad_iters": trainer.run.accum_grad_iters,
            "optimizer": optimizer,
            "optimizer_name": trainer.run.optimizer,
            "scaler": trainer.scaler.state_dict(),
            "ranks": ranks,
            "spikes": trainer.guard.state_dict(),
            "names": names,
        }
        check_plain(state)
        write = partial(self._write, trainer.progress.step, tensors, host_copy(state), self._provenance(names), best)
        self._writing.start(write)

    def _begin(self) -> Path:
        """Make the folder that all processes write into; a collective call."""
        work: Path | UserError | None = None
        if dist.is_main():
            try:
                work = self.trainer.run_dir.begin(self.trainer.progress.step)
            except UserError as error:
                work = error
        work = dist.broadcast_object(work)
        if isinstance(work, UserError):
            raise work
        if work is None or not work.is_dir():
            raise UserError(
                f"process {dist.rank()} on {platform.node()} does not see {work}, which process 0 has made",
                fix="a sharded run writes from every machine: set run.output_dir to a folder that all of them share",
            )
        return work

    def _write(
        self, step: int, tensors: dict[str, torch.Tensor] | Join, state: dict[str, Any], provenance: dict[str, Any],
        best: bool,
    ) -> None:  # fmt: skip
        """Write the copies; in a thread of rank 0."""
        trainer = self.trainer
        trainer.run_dir.save(step, tensors, state, provenance, trainer.config_text, best=best)
        trainer.run_dir.prune(trainer.run.keep_last, trainer.run.keep_every)

    def _provenance(self, names: list[str]) -> dict[str, Any]:
        trainer = self.trainer
        return make_provenance(
            step=trainer.progress.step,
            config=trainer.config,
            metrics={"loss": trainer.progress.loss, **self._measured()},
            fingerprints=trainer.fingerprints,
            trained=names,
            hardware={
                "device": dist.device_name(trainer.device),
                "processes": dist.world_size(),
                "threads": torch.get_num_threads(),
            },
        )

    def _measured(self) -> dict[str, float]:
        """The last validation and the last scores."""
        valid = {f"valid_{k}": v for k, v in self.trainer.progress.valid.items()}
        return valid | {k: v for k, v in self.trainer.progress.scores.items() if k != "seconds"}

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint folder exactly as if the run had not been interrupted.

        Raises:
            WeightsError: the checkpoint is damaged, or has other trainable parameters or other frozen weights.
            DataError: the data has changed.
        """
        state = read_state(folder / STATE)
        self._check_foundations(folder)
        try:
            self._restore(state, folder)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            log.debug("%s", folder, exc_info=True)
            raise WeightsError(
                f"{folder / STATE} is not the state of a run ({type(error).__name__}: {error!s:.200})",
                fix="copy the checkpoint again, or resume from another one",
            ) from error

    def _restore(self, state: dict[str, Any], folder: Path) -> None:
        """Take over what a checkpoint's file holds, which may be anything."""
        trainer = self.trainer
        names = names_of(trainer.model, trainer.run)
        self._check_optimizer(state, folder)
        before, now = state["accum_grad_iters"], trainer.run.accum_grad_iters
        if before != now:
            log.warning("run.accum_grad_iters changed from %d to %d", before, now)
        trainer.stepper.spread.settle()
        load_trainable(trainer.model, folder)
        load_state(trainer.optimizer, names, state["optimizer"], state["names"], folder)
        trainer.scaler.load_state_dict(state["scaler"])
        trainer.guard.load_state_dict(state.get("spikes", {}))  # runs of before have none
        trainer.progress = Progress(**state["progress"])
        trainer.loader.load_states([rank["loader"] for rank in state["ranks"]])
        self._restore_rng([rank["rng"] for rank in state["ranks"]])
        log.info("resumed from %s at step %d of %d", folder, trainer.progress.step, trainer.total_steps)

    def _restore_rng(self, states: list[dict[str, Any]]) -> None:
        """Restore this process's random states; with another number of processes, seed new ones from seed and step."""
        world = dist.world_size()
        if len(states) == world:
            restore_rng(states[dist.rank()], self.trainer.device)
            return
        if self.trainer.run.global_batch:
            log.info("the run resumes with %d processes instead of %d, with the same samples", world, len(states))
        else:
            log.warning(
                "the run resumes with %d processes instead of %d: every sample is still used once per pass, but steps "
                "have another size (the last one is %d), and random states are seeded again from run.seed and the step",
                world,
                len(states),
                self.trainer.total_steps,
            )
        seed = derive_seed(self.trainer.run.seed, "processes", world, self.trainer.progress.step) % 2**31
        dist.seed_everything(seed, dist.rank(), self.trainer.run.deterministic)

    def _check_optimizer(self, state: dict[str, Any], folder: Path) -> None:
        before, now = state.get("optimizer_name", self.trainer.run.optimizer), self.trainer.run.optimizer
        if before != now:
            raise WeightsError(
                f"{folder} has the state of run.optimizer={before}, this run has run.optimizer={now}",
                fix=f"set run.optimizer={before}, or start over from its weights in another run.output_dir",
            )

    def _check_foundations(self, folder: Path) -> None:
        stored = read_provenance(folder).get("fingerprints") or {}
        changed = differences(stored, self.trainer.fingerprints) if self.trainer.fingerprints else []
        if changed and not self.trainer.run.allow_other_base:
            raise WeightsError(
                f"{folder} was trained on other frozen weights; {'; '.join(changed)}",
                fix="give the same vision, Q-Former and LLM files as when the run was started; "
                "run.allow_other_base=true resumes nevertheless",
            )
