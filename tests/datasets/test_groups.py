"""Joint mixing: a batch of every group in turn, shares within a group, and what is wrong with groups."""

from __future__ import annotations

import json
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from vlm.common.errors import ConfigError, DataError
from vlm.datasets.loading.groups import ratios_from_sizes, record_counts
from vlm.datasets.loading.sources import Source
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.processors.processor import Processor

from .tools import Table, Tape, take


def sources(**ratios: float) -> list[Source]:
    given = {"a": 3.0, "b": 1.0, "c": 1.0, **ratios}
    return [
        Source("a", Table(30, "a"), 4, given["a"], group="vision"),
        Source("c", Tape(7, "c"), 2, given["c"], group="language"),
        Source("b", Table(10, "b"), 3, given["b"], group="vision"),
    ]


def loader(processor: Processor, **options: Any) -> TrainLoader:
    return TrainLoader(sources(), processor, **{"seed": 1, "mixing": "joint", **options})


def test_batches_of_the_groups_take_turns(processor: Processor) -> None:
    found = loader(processor)
    assert found.groups == ("vision", "language") and found.steps_per_epoch == 10
    batches = list(islice(found, 60))
    assert [b.group for b in batches] == ["vision", "language"] * 30
    assert {len(b.ids) for b in batches[::2]} == {4} and {len(b.ids) for b in batches[1::2]} == {2}
    kinds = [[name[0] for name in b.sample_ids] for b in batches]
    assert all(set(k) <= {"a", "b"} for k in kinds[::2]) and all(set(k) == {"c"} for k in kinds[1::2])
    assert any(set(k) == {"a", "b"} for k in kinds)
    counts = found.counts
    assert counts["a"]["samples"] + counts["b"]["samples"] == 120 and counts["c"]["samples"] == 60
    assert abs(counts["b"]["samples"] / 120 - 0.25) < 0.1
    assert [round(counts[n]["wanted"], 3) for n in ("a", "b", "c")] == [0.5, 0.167, 0.333]


def test_one_batch_size_for_all_groups(processor: Processor) -> None:
    assert {len(b.ids) for b in islice(loader(processor, batch_size=5), 4)} == {5}


def test_two_processes_share_every_batch(processor: Processor) -> None:
    whole = list(islice(loader(processor, batch_size=4), 8))
    halves = [list(islice(loader(processor, batch_size=2, rank=r, world_size=2), 8)) for r in range(2)]
    for one, first, second in zip(whole, *halves, strict=True):
        assert one.group == first.group == second.group
        assert one.sample_ids == [n for pair in zip(first.sample_ids, second.sample_ids, strict=True) for n in pair]


@pytest.mark.parametrize("stop", [0, 3, 9])
def test_a_pass_has_every_record_once(processor: Processor, stop: int) -> None:
    """Without ratios a group is one shuffled list of its datasets, also over a resume."""

    def make() -> TrainLoader:
        vision = [Source(n, Table(k, n), 5, float(k), group="vision") for n, k in (("a", 30), ("b", 10))]
        return TrainLoader(
            [*vision, Source("c", Table(7, "c"), 1, group="language")], processor, seed=1, mixing="joint"
        )

    found = make()
    assert found.steps_per_epoch == 8
    seen = list(islice(found, stop))
    resumed = make()
    resumed.load_state_dict(json.loads(json.dumps(found.state_dict())))
    seen += islice(resumed, 32 - stop)
    vision = [n.split("/")[0] for b in seen if b.group == "vision" for n in b.sample_ids]
    for part in (vision[:40], vision[40:]):
        assert len(part) == 40 == len(set(part))
    assert vision[:40] != vision[40:] and {n[0] for n in vision[:15]} == {"a", "b"}


def test_resumed_in_other_groups(processor: Processor) -> None:
    found = loader(processor)
    take(found, 3)
    state = json.loads(json.dumps(found.state_dict()))
    moved = sources()
    moved[2].group = "language"
    with pytest.raises(DataError, match="datasets in other groups"):
        TrainLoader(moved, processor, seed=1, mixing="joint").load_state_dict(state)
    with pytest.raises(DataError, match="mixed its data by joint, this one by sample"):
        loader(processor, mixing="sample").load_state_dict(state)


def test_groups_that_are_wrong(processor: Processor) -> None:
    bare = sources()
    bare[1].group = ""
    with pytest.raises(
        ConfigError, match=r"run\.mixing is joint, but c belongs to no group\s+fix: set datasets\.c\.group"
    ):
        TrainLoader(bare, processor, seed=1, mixing="joint")
    with pytest.raises(ConfigError, match=r"group language: no dataset has a sample_ratio above 0 \(c\)"):
        TrainLoader(sources(c=0.0), processor, seed=1, mixing="joint")


@pytest.mark.parametrize("workers", [0, 1])
def test_images_in_a_dataset_of_text(processor: Processor, workers: int) -> None:
    text = sources()
    text[1].text_only = True
    with pytest.raises(DataError, match=r"datasets\.c\.data_type is text, but sample c.* has 1 media"):
        list(islice(TrainLoader(text, processor, seed=1, mixing="joint", num_workers=workers), 2))


def entries(**ratios: float | None) -> dict[str, Any]:
    given = {"a": None, "b": None, "c": None, **ratios}
    return {name: SimpleNamespace(sample_ratio=ratio) for name, ratio in given.items()}


def test_without_ratios_shares_follow_from_the_numbers_of_records() -> None:
    found = sources(a=1.0)
    ratios_from_sizes(entries(), found)
    assert [s.ratio for s in found] == [30.0, 1.0, 10.0]
    assert record_counts(found, [0, 2]) == [30, 10] and record_counts(found, [1]) is None
    assert record_counts(sources(a=2.0), [0, 2]) is None
    with pytest.raises(ConfigError, match="group vision: b without sample_ratio, others have one"):
        ratios_from_sizes(entries(a=2.0), sources())
    streams = [Source("c", Tape(7), 2, group="x"), Source("a", Table(9), 2, group="x")]
    with pytest.raises(ConfigError, match="c is a stream, whose number of records is not known"):
        ratios_from_sizes(entries(), streams)
