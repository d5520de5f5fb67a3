"""Benchmarks while a run trains: a sample of questions, in the same processes, by the model as it is now."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlm.common.errors import ConfigError, DataError
from vlm.config.api import Config
from vlm.config.run import TrainingEvaluation
from vlm.inference.engine import Engine
from vlm.runners.evaluate.run import Asked, asked_of
from vlm.runners.train.parallel.copies import spread_of
from vlm.tasks.benchmarks.base import Result
from vlm.tasks.benchmarks.image_controls import Controlled, check_control

if TYPE_CHECKING:
    import torch

    from vlm.models.vlm import VLM
    from vlm.processors.processor import Processor

log = logging.getLogger(__name__)


@dataclass(eq=False)
class TrainingEvaluations:
    """The evaluations of ``run.eval``; call it on all processes, each answers its share of the questions.

    Raises ConfigError: an unknown image control, or an option that the benchmark does not have; DataError: questions
    that cannot be read, which is better known before training than after it.
    """

    cfg: Config
    model: VLM
    processor: Processor
    device: torch.device
    asked: list[Asked] = field(init=False)

    def __post_init__(self) -> None:
        """Find the benchmarks and read their questions; images are read when they are asked."""
        self.spread = spread_of(self.model)
        if not self.spread.fits():
            raise ConfigError(
                "run.eval asks the model in one piece, which does not fit into the free memory beside its shards",
                fix="remove run.eval and use `vlm eval` afterwards, or set run.parallel.shard=none",
            )
        self.asked, engine = [], self._engine()
        for entry in self.cfg.run.eval:
            for control in entry.images:
                check_control(control)
            asked = asked_of(self.cfg, entry.dataset, {"limit": entry.limit, "seed": self.cfg.run.seed})
            asked.dataset = asked.read(engine)
            self.asked.append(asked)

    def _engine(self) -> Engine:
        return Engine(self.model, self.processor, config=self.cfg, device=self.device)

    def due(self, step: int, epoch_steps: int, total_steps: int) -> list[int]:
        """Indices of the entries that are asked after ``step``."""
        every = [entry.every or epoch_steps for entry in self.cfg.run.eval]
        return [k for k, steps in enumerate(every) if step % steps == 0 or step == total_steps]

    def __call__(self, due: Sequence[int]) -> dict[str, float]:
        """``{"DATASET/METRIC": value, ..., "seconds"}``; the model is in training mode again afterwards.

        Other controls than ``right`` are ``DATASET/CONTROL/METRIC``. Answers that cannot be scored, e.g. because all
        are empty, are a warning: the next evaluation may be better.
        """
        started = time.monotonic()
        self.model.eval()
        with self.spread.unsharded() as possible:
            result = self._scores(due) if possible else {}
        self.model.train()
        if not possible:
            log.warning("run.eval: no scores this time, since the model in one piece does not fit into the free memory")
        return {**result, "seconds": time.monotonic() - started}

    def _scores(self, due: Sequence[int]) -> dict[str, float]:
        """Scores of the entries of ``due``, by a model that this process can call alone."""
        engine = self._engine()
        result: dict[str, float] = {}
        for index in due:
            entry = self.cfg.run.eval[index]
            for control in entry.images:
                name = entry.dataset if control == "right" else f"{entry.dataset}/{control}"
                try:
                    found = self._ask(engine, self.asked[index], entry, control)
                except DataError as error:
                    log.warning("run.eval: %s has no scores this time: %s", name, error)
                    continue
                result |= {f"{name}/{label}": value for label, value in values_of(found).items()}
        return result

    def _ask(self, engine: Engine, asked: Asked, entry: TrainingEvaluation, control: str) -> Result:
        questions = Controlled(
            asked.dataset,
            control,
            max_bad_share=self.cfg.run.max_bad_share,
            limit=asked.drawn(entry.limit),
            seed=self.cfg.run.seed,
        )
        found: Result = asked.benchmark().run(engine, questions, asked.options)
        return found


def values_of(result: Result) -> dict[str, float]:
    """The metrics of a result by their names; of a benchmark without such, the rows of its table."""
    metrics: dict[str, Any] = result.scores.get("metrics") or {row.label: row.value for row in result.rows()}
    return {label: float(value) for label, value in metrics.items() if value is not None}
