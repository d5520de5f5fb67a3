"""Data positions of a run that goes on with another number of processes.

Each process saved how far it had come (a job number; of every global job it takes the part ``r::world_size``)
and its pending samples. Three things are still to be handed out: pending samples and backlogs, the parts of
jobs that some process had not reached though the fastest one had, and all that comes after. The first two
become the new processes' backlog, so the samples of a pass stay the same, each of them once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from vlm.common.errors import DataError
from vlm.datasets.loading.batching import pending
from vlm.datasets.loading.data_stats import add_up
from vlm.datasets.loading.sampler import JobSampler, Key

log = logging.getLogger(__name__)


def merge(states: Sequence[dict[str, Any]], sampler: JobSampler) -> dict[str, Any]:
    """The state of ``sampler``'s rank, made of the states of all processes of the saved run (in order of rank).

    The counts of all go to rank 0.

    Raises:
        DataError: the states are not of one run, or the datasets have changed.
    """
    for state in states:
        sampler.check(state)
    fastest = max(states, key=lambda s: s["step"])
    backlog = [key for state in states for key in _held(state)] + _missed(states, sampler)
    if sampler.mixing == "batch":
        backlog.sort(key=lambda key: key[0])  # a batch is of one dataset
    own = backlog[sampler.rank :: sampler.world_size]
    log.info(
        "data position of %d processes divided over %d: %d samples first, then on from job %d",
        len(states), sampler.world_size, len(backlog), fastest["step"],
    )  # fmt: skip
    merged = {key: fastest[key] for key in fastest if key not in ("pending", "backlog", "tally", "records")}
    counts = {name: add_up([state[name] for state in states]) for name in ("tally", "records")}
    if sampler.rank:
        counts = {"tally": {}, "records": {"good": {}, "bad": {}}}
    return {**merged, "backlog": [list(key) for key in own], "pending": {}, **counts}


def _held(state: dict[str, Any]) -> list[Key]:
    """What a process had read and not used, and its rest of an earlier backlog."""
    return pending(state["pending"]) + [(s, e, i) for s, e, i in state["backlog"]]


def _missed(states: Sequence[dict[str, Any]], sampler: JobSampler) -> list[Key]:
    """Parts of the jobs between the slowest and the fastest process that were not reached."""
    slowest = min(states, key=lambda s: s["step"])
    fastest = max(states, key=lambda s: s["step"])
    if slowest["step"] == fastest["step"]:
        return []
    saved = sampler.replica(slowest["sizes"], len(states))
    saved.load_state_dict({**slowest, "backlog": []})
    missed = []
    while saved.step < fastest["step"]:
        refs, _ = saved.take()
        missed += [r.key for place, r in enumerate(refs) if states[place % len(states)]["step"] <= saved.step]
        saved.step += 1
    if saved.state_dict()["sources"] != fastest["sources"]:
        raise DataError(
            "the data positions of the saved processes do not belong to one run",
            fix="resume with the configuration, the seed and the data of the run folder",
        )
    return missed
