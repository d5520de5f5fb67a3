"""Data position of a run that resumes with a different number of processes.

Each process saved its job number (of every global job it takes the part ``r::world_size``) and its pending samples.
Still to be handed out are pending samples and backlogs, the parts of jobs that some processes had not reached although
the fastest one had, and everything after. The first two become the backlog of the new processes, so that every sample
of a pass is still used exactly once.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlm.common.errors import DataError
from vlm.datasets.loading.batching import pending
from vlm.datasets.loading.data_stats import sum_nested
from vlm.datasets.loading.sampler import JobSampler, Key

log = logging.getLogger(__name__)


def merge(states: Sequence[dict[str, Any]], sampler: JobSampler) -> dict[str, Any]:
    """The state for ``sampler``'s rank, from the states of all processes of the saved run (in order of rank).

    Rank 0 takes over the counts of all.

    Raises:
        DataError: the states are not of one run, or the datasets have changed.
    """
    for state in states:
        sampler.check(state)
    fastest = max(states, key=lambda s: s["step"])
    backlog = [key for state in states for key in _unused(state)] + _missed(states, sampler)
    if sampler.policy.name == "batch":
        backlog.sort(key=lambda key: key[0])  # a batch is of one dataset
    own = backlog[sampler.rank :: sampler.world_size]
    text = "data position of %d processes divided among %d: %d remaining samples first, then from job %d on"
    log.info(text, len(states), sampler.world_size, len(backlog), fastest["step"])
    merged = {key: fastest[key] for key in fastest if key not in ("pending", "backlog", "tally", "records")}
    counts = {name: sum_nested([state[name] for state in states]) for name in ("tally", "records")}
    if sampler.rank:
        counts = {"tally": {}, "records": {"good": {}, "bad": {}}}
    return {**merged, "backlog": [list(key) for key in own], "pending": {}, **counts}


def _unused(state: dict[str, Any]) -> list[Key]:
    """Samples that a process had read but not used, and what was left of its backlog."""
    return pending(state["pending"]) + [(s, e, i) for s, e, i in state["backlog"]]


def _missed(states: Sequence[dict[str, Any]], sampler: JobSampler) -> list[Key]:
    """Parts of jobs that the fastest process had reached and others had not."""
    slowest = min(states, key=lambda s: s["step"])
    fastest = max(states, key=lambda s: s["step"])
    if slowest["step"] == fastest["step"]:
        return []
    policy = replace(sampler.policy, sizes=slowest["sizes"])
    saved = replace(sampler, policy=policy, rank=0, world_size=len(states), states=deque())
    saved.load_state_dict({**slowest, "backlog": []})
    missed = []
    while saved.step < fastest["step"]:
        refs = enumerate(saved.take())
        missed += [r.key for place, r in refs if states[place % len(states)]["step"] < saved.step]
    if saved.state_dict()["sources"] != fastest["sources"]:
        raise DataError(
            "the data positions of the saved processes do not belong to one run",
            fix="resume with the configuration, the seed and the data of the run folder",
        )
    return missed
