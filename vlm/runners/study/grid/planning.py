"""What every run of a study will need, before anything runs: the plan of each, and what they need together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vlm.common.errors import UserError
from vlm.config.schema import Problem
from vlm.runners.plan.plan import Plan, Planner, Request
from vlm.runners.study.cells import Cell, StageRun, Study
from vlm.runners.study.file import Budget
from vlm.runners.study.grid.budget import Measurer
from vlm.runners.study.grid.build import Builder
from vlm.runners.study.grid.identity import hash_of, identity

LEARNING = (
    "lr_sched",
    "init_lr",
    "min_lr",
    "warmup_lr",
    "warmup_steps",
    "weight_decay",
    "beta2",
    "max_steps",
    "max_epoch",
)
"""Keys of ``run`` that change neither memory nor the time of a step."""


@dataclass(frozen=True)
class RunPlan:
    """One run.

    Attributes:
        run: which one.
        plan: of a step and of memory.
        steps: of the run; None: its file says no length.
        flops: of the run, all processes.
        hours: of the run.
    """

    run: StageRun
    plan: Plan
    steps: int | None
    flops: float
    hours: float


@dataclass
class StudyPlan:
    """All runs of a study.

    Attributes:
        study: its cells.
        runs: hash -> plan, of the first seed's runs.
        errors: hash -> why there is no plan.
        total_hours, total_flops: of all runs with all seeds, a shared one once.
        count: runs.
    """

    study: Study
    runs: dict[str, RunPlan] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    total_hours: float = 0.0
    total_flops: float = 0.0
    count: int = 0

    def cells(self) -> list[Cell]:
        """One cell for each combination: that of the first seed."""
        return list({cell.key: cell for cell in reversed(self.study.cells)}.values())[::-1]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        cells = [{"levels": dict(cell.levels), "runs": [self._run(run) for run in cell.runs]} for cell in self.cells()]
        return {"cells": cells, "runs": self.count, "hours": self.total_hours, "flops": self.total_flops}

    def _run(self, run: StageRun) -> dict[str, Any]:
        found = self.runs.get(run.hash)
        if found is None:
            return {"stage": run.stage, "hash": run.hash, "error": self.errors.get(run.hash, "")}
        numbers = {"steps": found.steps, "flops": found.flops, "hours": found.hours}
        return {"stage": run.stage, "hash": run.hash, **numbers, "plan": found.plan.as_json()}


def plan_study(builder: Builder, request: Request, tell: Callable[[str], None] = lambda _: None) -> StudyPlan:
    """The plans of all runs; combinations that do not check are in ``builder.faults``.

    Args:
        builder: of the study, with a measurer for its budgets.
        request: the device, and the processes of a run.
        tell: takes a line of progress.

    Raises:
        UserError: there are no cells.
    """
    study = builder.examine()
    result = StudyPlan(study)
    plans: dict[str, Plan] = {}
    for cell in result.cells():
        for run in cell.runs:
            if run.hash in result.runs or run.hash in result.errors:
                continue
            tell(f"planning {study.named(cell.key)}")
            try:
                result.runs[run.hash] = _plan(run, request, builder.measurer, plans)
            except UserError as error:
                result.errors[run.hash] = str(error)
                problem = Problem(f"{run.stage}", "", str(error))
                builder.faults.setdefault(cell.key, []).append(problem)
    counted: set[str] = set()
    for cell in study.cells:
        first = next(c for c in result.cells() if c.key == cell.key)
        for run, like in zip(cell.runs, first.runs, strict=True):
            if run.hash not in counted and like.hash in result.runs:
                counted.add(run.hash)
                result.total_hours += result.runs[like.hash].hours
                result.total_flops += result.runs[like.hash].flops
    result.count = len(counted)
    return result


def _plan(run: StageRun, request: Request, measurer: Measurer | None, plans: dict[str, Plan]) -> RunPlan:
    content = identity(run.config, "", request.processes, {})
    content["run"] = {k: v for k, v in content["run"].items() if k not in (*LEARNING, "seed")}
    key = hash_of([{k: v for k, v in content.items() if k != "weights"}, vars(run.config.run.parallel)])
    if key not in plans:
        plans[key] = Planner(run.config, request).plan()
    plan = plans[key]
    steps = run.steps or plan.steps
    work = plan.flops * plan.processes
    if measurer is not None and run.budget is not None and run.budget.flops is not None:
        work = measurer.of(run.config, Budget(flops=run.budget.flops)).flops
    hours = (steps or 0) * plan.seconds / 3600
    return RunPlan(run, dataclasses.replace(plan, steps=steps, hours=hours), steps, work * (steps or 0), hours)
