"""One way to ask any judge: a rule, a composition, or an address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm.common import dist
from vlm.common.errors import DataError, UserError
from vlm.tasks.judges import judge_of
from vlm.tasks.judging.base import Case, JudgeOptions, Verdict

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.tasks.judging.local import ModelJudge


class AnyJudge:
    """A judge by its name or its options. ``retries``: requests that had to be sent again."""

    def __init__(self, named: str | JudgeOptions, engine: Engine) -> None:
        """``engine`` is the model that answers; a judge that is a model is loaded on its device when first asked."""
        self._named, self._engine, self.retries = named, engine, 0
        self._model: ModelJudge | None = None

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
        """One per case, in order; call it on all processes.

        Raises ConfigError: no such judge; DataError: a language model gave no verdict that can be read; UserError: its
        weights or its address cannot be used.
        """
        if isinstance(self._named, str):
            rule = judge_of(self._named)
            return [Verdict(rule(case.question, case.answer, case.reference)) for case in cases]
        found = self._remote(self._named, cases) if self._named.kind == "http" else self._local(self._named, cases)
        if cases and all(verdict.right is None for verdict in found):
            raise DataError(
                f"the judge gave no verdict on any of {len(cases)} answers; the first: {found[0].error}",
                fix="see its address and its prompt; it must reply with yes or no",
            )
        return found

    def _local(self, options: JudgeOptions, cases: Sequence[Case]) -> list[Verdict]:
        from vlm.tasks.judging.local import ModelJudge

        self._model = self._model or ModelJudge(options, device=str(self._engine.device))
        return self._model.verdicts(cases)

    def _remote(self, options: JudgeOptions, cases: Sequence[Case]) -> list[Verdict]:
        """Asked by the first process only; its failure is that of all."""
        from vlm.tasks.judging.http import HttpJudge

        found: tuple[list[Verdict], int, str] = ([], 0, "")
        if dist.is_main():
            try:
                judge = HttpJudge(options)
                verdicts = judge.verdicts(cases)
                found = verdicts, judge.retries, ""
            except UserError as error:
                found = [], 0, str(error)
        verdicts, retries, problem = dist.broadcast_object(found)
        if problem:
            raise UserError(problem)
        self.retries += retries
        return list(verdicts)
