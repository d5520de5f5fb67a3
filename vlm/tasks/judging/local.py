"""A judge that is one of our compositions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from vlm.common.types import Message
from vlm.tasks.answers import Question, answer_all
from vlm.tasks.judging.base import Case, JudgeOptions, Verdict, read_verdict

if TYPE_CHECKING:
    from vlm.inference.engine import Engine


class ModelJudge:
    """Asks a model, loaded once; processes share the cases. ``retries`` is 0: nothing is asked twice."""

    retries = 0

    def __init__(self, options: JudgeOptions, engine: Engine | None = None, device: str | None = None) -> None:
        """Load the model, unless it is given. Raises UserError: it cannot be loaded."""
        self.options = options
        if engine is None:
            from vlm.inference.engine import Engine as Loader

            engine = Loader.load(options.run, device=device)
        self.engine = engine

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
        """One per case, in order; equal cases are asked once. Call it on all processes."""
        from vlm.inference.generation import Generation

        options = self.options
        generation = Generation(do_sample=False, repetition_penalty=1.0, seed=options.seed)
        asked: dict[str, Question] = {
            str(k): partial(list, [Message("user", case.prompt(options.prompt))])
            for k, case in enumerate(dict.fromkeys(cases))
        }
        found = answer_all(
            self.engine, asked, generation.replace(max_new_tokens=options.max_new_tokens), options.batch_size
        )
        said = [found[key] for key in asked]
        verdicts = [Verdict(None, "", f"the judge failed: {a.error}") if a.error else read_verdict(a) for a in said]
        by_case = dict(zip(dict.fromkeys(cases), verdicts, strict=True))
        return [by_case[case] for case in cases]
