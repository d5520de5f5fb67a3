"""The state of a loader: exact at any batch, small, and dividable over another number of processes."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.config.run import Packing
from vlm.datasets.loading.sources import Source
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.processors.processor import Processor

from .tools import Table, Tape, name_of, take

FORMS: dict[str, dict[str, Any]] = {
    "batch": {},
    "sample": {"mixing": "sample"},
    "joint": {"mixing": "joint"},
    "grouped": {"group_by_length": 3},
    "grouped_sample": {"group_by_length": 3, "mixing": "sample"},
    "packed": {"packing": Packing(max_tokens=90, max_media=4, open_rows=5), "batch_size": 2},
}
KINDS = ("map", "stream", "mixed")


def sources(kind: str, n: int = 23) -> list[Source]:
    table, tape = Source("table", Table(n, bad=(5,)), 4, 2.0, group="a"), Source("tape", Tape(n - 4), 3, 1.0, group="b")
    more = Source("more", Table(9, "m"), 2, 1.0, group="a")
    return {"map": [table], "stream": [tape], "mixed": [table, tape, more]}[kind]


def make(kind: str, processor: Processor, n: int = 23, **options: Any) -> TrainLoader:
    return TrainLoader(sources(kind, n), processor, **{"seed": 1, "max_bad_share": 1.0, **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_fifty_batches_after_any_step(form: str, kind: str, processor: Processor) -> None:
    straight = take(make(kind, processor, **FORMS[form]), 90)
    for stop in (1, random.SystemRandom().randrange(2, 40)):
        loader = make(kind, processor, **FORMS[form])
        take(loader, stop)
        text = json.dumps(loader.state_dict())
        assert len(text) < 4096
        resumed = make(kind, processor, **FORMS[form])
        resumed.load_state_dict(json.loads(text))
        assert json.dumps(resumed.state_dict()) == text
        assert take(resumed, 50) == straight[stop : stop + 50], f"stopped after {stop} batches"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_workers_change_nothing(form: str, workers: int, processor: Processor) -> None:
    straight = take(make("mixed", processor, **FORMS[form]), 70)
    loader = make("mixed", processor, num_workers=workers, **FORMS[form])
    stop = random.SystemRandom().randrange(1, 20)
    assert take(loader, stop) == straight[:stop]
    state = json.loads(json.dumps(loader.state_dict()))
    loader.close()
    resumed = make("mixed", processor, num_workers=workers, **FORMS[form])
    resumed.load_state_dict(state)
    assert take(resumed, 50) == straight[stop : stop + 50]
    assert resumed.counts == _counts_after("mixed", processor, stop + 50, form)
    resumed.close()


def _counts_after(kind: str, processor: Processor, steps: int, form: str) -> dict[str, Any]:
    loader = make(kind, processor, **FORMS[form])
    take(loader, steps)
    return {name: {**c, "bad": loader.counts[name]["bad"]} for name, c in loader.counts.items()}


def test_pending_samples_are_counted_once(processor: Processor) -> None:
    loader = make("mixed", processor, **FORMS["packed"])
    seen = [i for batch in take(loader, 12) for i in batch[-1]]
    resumed = make("mixed", processor, **FORMS["packed"])
    resumed.load_state_dict(loader.state_dict())
    seen += [i for batch in take(resumed, 12) for i in batch[-1]]
    assert sum(c["samples"] for c in resumed.counts.values()) == len(seen)


def clean(kind: str, processor: Processor, n: int, **options: Any) -> TrainLoader:
    """Without bad records: a stand-in would come twice."""
    table, tape = Source("table", Table(n), 4, 2.0, group="a"), Source("tape", Tape(n - 4), 3, 1.0, group="b")
    chosen = {"map": [table], "stream": [tape], "mixed": [table, tape]}[kind]
    return TrainLoader(chosen, processor, seed=1, **options)


def team(kind: str, processor: Processor, n: int, form: str, world: int) -> list[TrainLoader]:
    """The loaders of all ranks."""
    return [clean(kind, processor, n, rank=r, world_size=world, **FORMS[form]) for r in range(world)]


def step(ranks: list[TrainLoader], used: Counter[str], steps: int = 1) -> None:
    """Every rank takes some batches; no sample of a pass may come twice."""
    for _ in range(steps):
        used.update(name for loader in ranks for name in take(loader, 1)[0][-1])
    assert max(used.values()) == 1


def first_pass(ranks: list[TrainLoader], used: Counter[str]) -> None:
    """Go on until the first pass over every dataset has been used, and see that this does happen."""
    pass_ = {name_of(s.name, s.dataset, 0, i) for s in ranks[0].sources for i in range(s.dataset.n)}
    for _ in range(200):
        if pass_ <= set(used):
            return
        step(ranks, used)
    raise AssertionError(f"never used: {pass_ - set(used)}")


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_ranks_share_a_pass(form: str, world: int, processor: Processor) -> None:
    first_pass(team("mixed", processor, 61, form, world), Counter())


@pytest.mark.parametrize(
    ("form", "kind"), [("packed", "map"), ("packed", "stream"), *((form, "mixed") for form in FORMS)]
)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (3, 2)])
def test_another_number_of_processes_uses_the_same_samples(
    form: str, kind: str, before: int, after: int, processor: Processor
) -> None:
    used: Counter[str] = Counter()
    ranks = team(kind, processor, 71, form, before)
    step(ranks, used, 4)
    for world in (after, after, before):  # the same number again, and back, in the middle of the backlog
        states = json.loads(json.dumps([loader.state_dict() for loader in ranks]))
        assert len(json.dumps(states)) < 8192 * len(states)
        ranks = team(kind, processor, 71, form, world)
        for loader in ranks:
            loader.load_states(states)
        assert sum(c["samples"] for loader in ranks for c in loader.counts.values()) == sum(used.values())
        step(ranks, used)
    first_pass(ranks, used)


def test_ranks_that_are_far_apart(processor: Processor) -> None:
    """The slow rank's part of the jobs that the fast one has passed comes first."""
    ranks = team("mixed", processor, 200, "packed", 2)
    used: Counter[str] = Counter()
    step(ranks[:1], used, 8)
    step(ranks[1:], used, 1)
    states = [loader.state_dict() for loader in ranks]
    assert states[0]["step"] > states[1]["step"] + 2
    (one,) = team("mixed", processor, 200, "packed", 1)
    one.load_states(states)
    backlog = one.state_dict()["backlog"]
    assert one.state_dict()["position"] == states[0]["position"] == sum(used.values()) + len(backlog)
    step([one], used)
    assert len(one.state_dict()["backlog"]) < len(backlog)
    assert one.state_dict()["position"] == states[0]["position"]
    first_pass([one], used)


def test_merging_is_logged(processor: Processor, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(logging.getLogger("vlm"), "propagate", True)
    saved = make("mixed", processor, **FORMS["packed"])
    take(saved, 3)
    fresh = make("mixed", processor, rank=1, world_size=2, **FORMS["packed"])
    with caplog.at_level(logging.INFO, "vlm"):
        fresh.load_states([saved.state_dict()])
    assert "data position of 1 processes divided among 2" in caplog.text
    assert fresh.counts["table"]["samples"] == 0  # rank 0 has them


def test_other_limits_place_pending_samples_anew(processor: Processor) -> None:
    (saved,) = team("mixed", processor, 71, "packed", 1)
    used: Counter[str] = Counter()
    step([saved], used, 6)
    wider = clean("mixed", processor, 71, packing=Packing(max_tokens=140), batch_size=2)
    wider.load_state_dict(saved.state_dict())
    step([wider], used, 6)
    assert wider.state_dict()["pending"]["limits"] == [140, None, 32]
    first_pass([wider], used)


def test_what_cannot_be_resumed(processor: Processor) -> None:
    packed = make("mixed", processor, **FORMS["packed"])
    take(packed, 2)
    with pytest.raises(DataError, match="mixed its data by sample, this one by batch"):
        make("mixed", processor).load_state_dict(packed.state_dict())
    with pytest.raises(DataError, match=r"holds \d+ samples for packed rows"):
        make("mixed", processor, mixing="sample").load_state_dict(packed.state_dict())
    with pytest.raises(DataError, match="dataset table has 24 records but the saved run had 23"):
        make("mixed", processor, 24, **FORMS["packed"]).load_states([packed.state_dict()] * 2)
    with pytest.raises(DataError, match="saved run had the datasets"):
        make("map", processor, **FORMS["packed"]).load_states([packed.state_dict()] * 2)


def test_a_state_of_an_earlier_version(processor: Processor) -> None:
    old = {"step": 3, "sources": {"table": {"position": 12, "length": 23}}, "counts": {}}
    with pytest.raises(DataError, match="saved by an earlier version"):
        make("map", processor).load_states([old])


def test_positions_of_different_runs_are_refused(processor: Processor) -> None:
    states = []
    for seed, steps in ((1, 2), (7, 9)):
        loader = make("mixed", processor, seed=seed, **FORMS["packed"])
        take(loader, steps)
        states.append(loader.state_dict())
    with pytest.raises(DataError, match="do not belong to one run"):
        make("mixed", processor, **FORMS["packed"]).load_states(states)


def test_a_stream_that_has_become_shorter(processor: Processor) -> None:
    loader = TrainLoader([Source("tape", Tape(40))], processor, seed=1, **FORMS["packed"])
    take(loader, 4)
    state = loader.state_dict()
    resumed = TrainLoader([Source("tape", Tape(3))], processor, seed=1, **FORMS["packed"])
    resumed.load_state_dict(state)
    with pytest.raises(DataError, match=r"dataset tape: record \d+ of pass 0, read by the saved run, no longer exists"):
        next(resumed)


def test_a_pending_record_that_is_broken_now(processor: Processor) -> None:
    loader = TrainLoader([Source("table", Table(40))], processor, seed=1, **FORMS["packed"])
    take(loader, 2)
    gone = TrainLoader([Source("table", Table(40, bad=tuple(range(40))))], processor, seed=1, **FORMS["packed"])
    gone.load_state_dict(loader.state_dict())
    with pytest.raises(DataError, match="the saved run had read cannot be used now: .*: record .*: broken"):
        next(gone)


@pytest.mark.parametrize("form", FORMS)
def test_skipping_steps_leads_to_the_same_batches(form: str, processor: Processor) -> None:
    whole, part = (make("mixed", processor, **FORMS[form]) for _ in range(2))
    expected = take(whole, 16)[13:]
    take(part, 3)
    part.skip(5, 2)
    assert take(part, 3) == expected
    fresh = make("mixed", processor, **FORMS[form])
    fresh.load_state_dict(make("mixed", processor, **FORMS[form]).state_dict())
    fresh.skip(13, 1)
    again = make("mixed", processor, **FORMS[form])
    again.load_state_dict(json.loads(json.dumps(fresh.state_dict())))
    assert take(fresh, 3) == expected == take(again, 3)


def test_skipping_decodes_nothing(processor: Processor, monkeypatch: Any) -> None:
    loader = make("mixed", processor)
    monkeypatch.setattr(Table, "draw", None)
    monkeypatch.setattr(Tape, "draw", None)
    loader.skip(40, 2)
    assert loader.state_dict()["step"] == 80
