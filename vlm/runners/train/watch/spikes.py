"""Steps whose loss or gradient is far above those before.

Far is measured in robust standard deviations: the median absolute deviation of the last steps, which a few wild steps
do not move. Only large values count: a loss that falls is what training is for.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.common import dist
from vlm.common.errors import UserError, printable
from vlm.config.run import SpikeLimits

log = logging.getLogger(__name__)

ENOUGH = 16
"""Steps (or the window, if it is shorter) before the first verdict."""
NORMAL = 1.4826
"""Median absolute deviation -> standard deviation, of normally distributed numbers."""
STEADY = 0.02
"""Least deviation that is assumed, as a share of the median: steps that hardly differ make no limit of hardly more."""
LEAST = 1e-3
"""Least deviation of the loss that is assumed: one near zero may double."""
QUANTITIES = ("loss", "gradient norm")
SMALLEST, LARGEST = 1e-30, 1e30
"""Norms are judged by their logarithm, between these: they vary by factors, and four times the median is common."""
LEVEL = 50
"""Spikes in a row, with ``on_spike: warn``, that are a new level and not spikes."""
COUNTS = ("in_a_row", "found", "skipped")
NAMED = 8
"""Samples that a message names."""


class SpikeError(UserError):
    """The run ends at a spike (``on_spike: stop``), or because too many in a row were skipped."""


@dataclass(frozen=True)
class Limit:
    """Where the steps before are."""

    median: float
    deviation: float  # robust standard deviation, never 0; of a norm that of its logarithm
    by_factor: bool  # whether the quantity is a norm

    @classmethod
    def of(cls, values: Sequence[float], quantity: str) -> Limit:
        """From at least one value of a quantity of :data:`QUANTITIES`."""
        by_factor = quantity != "loss"
        median = _median(sorted(values))
        centre = _scaled(median, by_factor)
        spread = NORMAL * _median(sorted(abs(_scaled(value, by_factor) - centre) for value in values))
        return cls(median, max(spread, STEADY if by_factor else max(STEADY * abs(median), LEAST)), by_factor)

    def score(self, value: float) -> float:
        """Deviations above the median."""
        return (_scaled(value, self.by_factor) - _scaled(self.median, self.by_factor)) / self.deviation

    def most(self, deviations: float) -> float:
        """The value that is so many deviations above the median."""
        above = deviations * self.deviation
        if not self.by_factor:
            return self.median + above
        return math.exp(min(_scaled(self.median, True) + above, math.log(LARGEST)))


def _scaled(value: float, by_factor: bool) -> float:
    return math.log(min(max(value, SMALLEST), LARGEST)) if by_factor else value


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@dataclass(frozen=True)
class Spike:
    """What a step is far above."""

    quantity: str  # ``loss`` or ``gradient norm``
    value: float
    limit: Limit
    steps: int  # of which the limit is
    most: float  # value above which a step is a spike

    def __str__(self) -> str:
        return (
            f"{self.quantity} {self.value:.4g}, where the last {self.steps} steps have the median "
            f"{self.limit.median:.4g} and the limit is {self.most:.4g}"
        )

    def record(self, skipped: bool, samples: Sequence[str]) -> dict[str, Any]:
        """Its line of the log, without the step."""
        numbers = {"value": self.value, "median": self.limit.median, "limit": self.most, "skipped": int(skipped)}
        return {"quantity": self.quantity, **numbers, "sample_ids": list(samples)}


class History:
    """The last steps without the spikes, and what they say of the next one."""

    def __init__(self, limits: SpikeLimits) -> None:
        self.limits = limits
        self.values = {name: deque[float](maxlen=limits.window) for name in QUANTITIES}

    def scores(self, loss: float, grad_norm: float) -> dict[str, tuple[float, Limit]]:
        """Deviations above the median of each quantity; empty as long as there are too few steps."""
        if len(self.values["loss"]) < min(ENOUGH, self.limits.window):
            return {}
        limits = {name: Limit.of(values, name) for name, values in self.values.items()}
        return {n: (limits[n].score(value), limits[n]) for n, value in zip(QUANTITIES, (loss, grad_norm), strict=True)}

    def spike(self, loss: float, grad_norm: float) -> Spike | None:
        """The quantity that is furthest above its limit, or None."""
        found = self.scores(loss, grad_norm)
        above = {name: score for name, (score, _) in found.items() if score > self.limits.deviations}
        if not above:
            return None
        name = max(above, key=above.__getitem__)
        limit = found[name][1]
        value = loss if name == "loss" else grad_norm
        return Spike(name, value, limit, len(self.values[name]), limit.most(self.limits.deviations))

    def add(self, loss: float, grad_norm: float) -> None:
        """Take a step that is not a spike."""
        for name, value in zip(QUANTITIES, (loss, grad_norm), strict=True):
            self.values[name].append(value)

    def clear(self) -> None:
        """Start over: the next steps are of another level."""
        for values in self.values.values():
            values.clear()


class SpikeGuard:
    """Judges each step against the last ones; the same on every process, because the numbers are sums over all.

    Args:
        action: ``run.on_spike``: warn, skip or stop.
        limits: how far is far.
        run: the run folder, for messages.
    """

    def __init__(self, action: str, limits: SpikeLimits, run: str | Path = "RUN") -> None:
        self.action, self.limits, self.run = action, limits, run
        self.history, self.in_a_row, self.found, self.skipped = History(limits), 0, 0, 0

    def judge(self, loss: float, grad_norm: float) -> Spike | None:
        """Why this step is a spike, or None; called once per step, before the update. A spike changes no statistics."""
        spike = self.history.spike(loss, grad_norm)
        if spike is None:
            self.history.add(loss, grad_norm)
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        self.found += 1
        if self.action == "warn" and self.in_a_row > LEVEL:
            log_main("%d steps in a row are above the limit: they are the new level", LEVEL)
            self.history.clear()
            self.history.add(loss, grad_norm)
            self.in_a_row = 0
            self.found -= 1
            return None
        return spike

    def skips(self, spike: Spike, step: int, samples: Sequence[str]) -> bool:
        """Tell the user, and whether the update of this step is left out.

        Args:
            spike: from :meth:`judge`.
            step: number of the step.
            samples: names of its samples, of all processes.

        Raises:
            SpikeError: ``on_spike`` is stop, or too many steps in a row were skipped.
        """
        look = f"vlm replay {self.run} --step {step}"
        more = f" and {len(samples) - NAMED} more" if len(samples) > NAMED else ""
        what = printable(f"step {step} is a spike: {spike}; samples: {', '.join(samples[:NAMED])}{more}")
        kept = "the weights are as before this step, and earlier checkpoints are kept"
        if self.action == "stop":
            fix = f"`{look}` shows the step; run.resume=auto run.on_spike=skip goes on without it"
            raise SpikeError(f"{what}; run.on_spike=stop: {kept}", fix=fix)
        if self.action == "skip" and self.in_a_row > self.limits.most_skipped:
            raise SpikeError(
                f"{what}; {self.limits.most_skipped} steps before it were skipped for the same reason "
                f"(run.spike.most_skipped): {kept}",
                fix=f"`{look}` shows the step; lower run.init_lr, or raise run.spike.deviations",
            )
        done = "; skipped, the weights are unchanged" if self.action == "skip" else ""
        if self.action == "skip" or self.in_a_row & (self.in_a_row - 1) == 0:  # of many in a row 1, 2, 4, 8, ...
            row = f" ({self.in_a_row} in a row)" if self.in_a_row > 1 else ""
            log_main("%s%s%s; look at it: %s", what, row, done, look)
        self.skipped += self.action == "skip"
        return self.action == "skip"

    def summary(self) -> str:
        """How many steps were spikes so far, for the end of a run; empty if none was."""
        skipped = f", {self.skipped} of them skipped" if self.skipped else ""
        return f"{self.found} spikes{skipped}: vlm replay {self.run} --spikes lists them" if self.found else ""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, part of every checkpoint, so that a resumed run judges alike."""
        counts = {name: vars(self)[name] for name in COUNTS}
        return {**{name: list(values) for name, values in self.history.values.items()}, **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the statistics of a checkpoint; an empty one starts without."""
        self.history.clear()
        for name, values in self.history.values.items():
            values.extend(state.get(name, ()))
        for name in COUNTS:
            setattr(self, name, state.get(name, 0))


def log_main(text: str, *values: Any) -> None:
    """A warning of rank 0; all processes have the same verdict."""
    if dist.is_main():
        log.warning(text, *values)
