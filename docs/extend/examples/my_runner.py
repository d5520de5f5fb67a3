"""A runner: the usual training loop, which writes a file when it has ended."""

import json

from vlm import register_runner
from vlm.runners.train.trackers import Tracker
from vlm.runners.train.trainer import RunResult, Trainer


@register_runner("frugal_runner")
class FrugalRunner(Trainer):
    """Trains as ``runner_base`` and notes the seconds per step beside the run."""

    def fit(self, trackers: list[Tracker] | None = None) -> RunResult:
        """Train to the end, a stop signal or an early stop."""
        result = super().fit(trackers)
        cost = {"steps": result.step, "seconds": result.seconds}
        (result.path / "cost.json").write_text(json.dumps(cost) + "\n", encoding="utf-8")
        return result
