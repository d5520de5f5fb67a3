"""Checkpoints of a training run: writing one, and continuing from one."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.checkpoint.provenance import differences, make_provenance, read_provenance
from vlm.checkpoint.run_folder import read_checkpoint
from vlm.checkpoint.train_state import capture_rng, load_trainable_tensors, restore_rng, trainable_tensors
from vlm.common import dist
from vlm.common.errors import UserError, WeightsError
from vlm.datasets.loading.mixing import derive_seed
from vlm.runners.train.optim import trainable_names

if TYPE_CHECKING:
    from vlm.runners.train.trainer import Trainer

log = logging.getLogger(__name__)


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
    """Saves and resumes the run of a trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of the current step; a collective call, rank 0 writes."""
        trainer = self.trainer
        ranks = dist.gather_objects({"rng": capture_rng(trainer.device), "loader": trainer.loader.state_dict()})
        fault: UserError | None = None
        if dist.is_main():
            names = trainable_names(trainer.model, trainer.run.weight_decay_on)
            states = {
                "optimizer": trainer.optimizer.state_dict(),
                "scaler": trainer.scaler.state_dict(),
                "ranks": ranks,
            }
            states["spikes"] = trainer.guard.state_dict()
            steps = {"progress": vars(trainer.progress), "accum_grad_iters": trainer.run.accum_grad_iters}
            state = {**steps, **states, "names": names}
            provenance = make_provenance(
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
            try:
                step, tensors = trainer.progress.step, trainable_tensors(trainer.model)
                trainer.run_dir.save(step, tensors, state, provenance, trainer.config_text, best=best)
                trainer.run_dir.prune(trainer.run.keep_last, trainer.run.keep_every)
            except UserError as error:
                fault = error
        if fault := dist.broadcast_object(fault):  # the other processes wait for it
            raise fault

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
        trainer = self.trainer
        tensors, state = read_checkpoint(folder)
        self._check_foundations(folder)
        before, now = state["accum_grad_iters"], trainer.run.accum_grad_iters
        if before != now:
            log.warning("run.accum_grad_iters changed from %d to %d", before, now)
        load_trainable_tensors(trainer.model, tensors, str(folder))
        trainer.optimizer.load_state_dict(state["optimizer"])
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

    def _check_foundations(self, folder: Path) -> None:
        stored = read_provenance(folder).get("fingerprints") or {}
        changed = differences(stored, self.trainer.fingerprints) if self.trainer.fingerprints else []
        if changed and not self.trainer.run.allow_other_base:
            raise WeightsError(
                f"{folder} was trained on other frozen weights; {'; '.join(changed)}",
                fix="give the same vision, Q-Former and LLM files as when the run was started; "
                "run.allow_other_base=true resumes nevertheless",
            )
