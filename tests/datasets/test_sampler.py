from __future__ import annotations

from collections.abc import Iterator

import pytest

from vlm.common.errors import DataError
from vlm.common.types import Sample
from vlm.datasets.loading.mixing import BatchMixing
from vlm.datasets.loading.sampler import LOOKAHEAD, JobSampler, MapCursor, StreamCursor, cursor


class Numbers:
    """Map style."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        return Sample((), id=str(index))


class Stream:
    """Passes of n records whose order depends on the seed."""

    def __init__(self, n: int) -> None:
        self.n, self.read = n, 0

    def records(self, seed: int | None) -> Iterator[int]:
        for k in range(self.n):
            self.read += 1
            yield (k + (seed or 0)) % self.n

    def decode(self, raw: int) -> Sample:
        return Sample((), id=str(raw))


def test_every_pass_holds_every_record_once_in_another_order() -> None:
    one = MapCursor("a", Numbers(10), seed=0)
    refs = [r for _ in range(6) for r in one.take(5)]
    passes = [[r.index for r in refs if r.epoch == e] for e in range(3)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3


def test_batches_may_straddle_passes() -> None:
    one = MapCursor("a", Numbers(3), seed=0)
    assert [r.epoch for r in one.take(7)] == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("dataset", [Numbers(10), Stream(10)])
@pytest.mark.parametrize("before", [0, 1, 4, 10, 13])
def test_cursors_resume_exactly(dataset: object, before: int) -> None:
    first, second = cursor("a", dataset, 5), cursor("a", dataset, 5)
    if before:
        first.take(before)
    second.load_state_dict(first.state_dict())
    assert second.take(9) == first.take(9)
    assert second.state_dict() == first.state_dict()


def test_stream_spares_are_the_records_that_come_next() -> None:
    one = StreamCursor("a", Stream(10), seed=0)
    one.take(4)
    lookahead = one.lookahead()
    assert len(lookahead) == LOOKAHEAD
    assert one.take(LOOKAHEAD) == list(lookahead)


def test_stream_state_is_a_pass_and_an_offset() -> None:
    one = StreamCursor("a", Stream(4), seed=0)
    one.take(4)
    assert one.state_dict() == {"epoch": 0, "offset": 4}
    one.take(1)
    assert one.state_dict() == {"epoch": 1, "offset": 1}


@pytest.mark.parametrize("dataset", [Numbers(0), Stream(0)])
def test_empty_datasets_are_refused_at_once(dataset: object) -> None:
    with pytest.raises(DataError, match="dataset birds is empty: 0 records"):
        cursor("birds", dataset, 0)


def test_what_is_no_dataset() -> None:
    with pytest.raises(DataError, match="dataset birds: object has neither"):
        cursor("birds", object(), 0)


def test_a_changed_dataset_cannot_be_resumed() -> None:
    state = MapCursor("a", Numbers(10), 0).state_dict()
    with pytest.raises(DataError, match="dataset a has 9 records but the saved run had 10"):
        MapCursor("a", Numbers(9), 0).load_state_dict(state)
    sampler = JobSampler([MapCursor("b", Numbers(9), 0)], BatchMixing(0, [1.0], [1]))
    with pytest.raises(DataError, match=r"the saved run had the datasets \['a'\], this one has \['b'\]"):
        sampler.load_state_dict({"step": 0, "backlog": [], "sources": {"a": state}})


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_global_batch(world: int) -> None:
    def jobs(rank: int, size: int, processes: int) -> list[list[tuple[int, int]]]:
        cursors = [cursor("a", Numbers(30), 3, 0), cursor("b", Stream(30), 3, 1)]
        sampler = JobSampler(cursors, BatchMixing(3, [2, 1], [size, size]), rank, processes)
        return [[(r.source, p, r.epoch, r.index) for p, r in job.refs] for job, _ in zip(sampler, range(12))]

    whole = jobs(0, 8, 1)
    parts = [jobs(rank, 8 // world, world) for rank in range(world)]
    assert [sorted(r for part in parts for r in part[step]) for step in range(12)] == [sorted(b) for b in whole]
    assert [parts[world - 1][0][k] for k in range(8 // world)] == whole[0][world - 1 :: world]
