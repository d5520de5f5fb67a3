"""``global_batch``: every step has the same samples, however many processes share it and however it is cut."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest

from vlm.common.errors import ConfigError, DataError
from vlm.common.types import MEDIA_TOKEN, Batch, Example, Sample
from vlm.config.run import Packing, RunConfig
from vlm.datasets.loading.global_batch import micro_batches
from vlm.datasets.loading.sources import Source
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.processors.processor import Processor

from .tools import Table, Tape, fingerprint

FORMS: dict[str, dict[str, Any]] = {
    "batch": {},
    "sample": {"mixing": "sample", "batch_size": 3},
    "joint": {"mixing": "joint"},
    "grouped": {"group_by_length": 1},
    "grouped_sample": {"group_by_length": 1, "mixing": "sample"},
    "packed": {"packing": Packing(max_tokens=90, max_media=4), "batch_size": 2},
}
WORLDS = (1, 2, 3, 4, 8)
Ranks = list[TrainLoader]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tokenizer and no recipe: an id for every letter, and the images as they are."""

    def encode(own: Processor, drawn: Sample, rng: random.Random, *, augment: bool = True) -> Example:
        user, assistant = drawn.messages
        ids = [MEDIA_TOKEN] * len(user.media) + [5] * (len(assistant.text) // 4)
        return Example(ids, ids, [m.source[None] for m in user.media], drawn.id, drawn.source)

    monkeypatch.setattr(Processor, "encode_train", encode)


class BadTape(Tape):
    """A stream with three broken records in a row, as many as the lookahead has."""

    def draw(self, raw: int, rng: random.Random) -> Sample:
        if raw >= self.n:
            raise DataError(f"record {raw}: broken")
        return super().draw(raw, rng)

    def records(self, seed: int | None) -> Iterator[int]:
        whole = list(super().records(seed))
        yield from [*whole[:5], self.n, self.n + 1, self.n + 2, *whole[5:]]


def sources(kind: str) -> list[Source]:
    table, tape = Source("table", Table(23, bad=(5, 6)), 4, 2.0, group="a"), Source("tape", BadTape(19), 3, group="b")
    more = Source("more", Table(9, "m"), 2, group="a")
    return {"map": [table], "stream": [tape], "mixed": [table, tape, more]}[kind]


def make(kind: str, processor: Processor, world: int = 1, global_batch: int = 16, **options: Any) -> Ranks:
    """The loaders of all ranks."""
    options = {"seed": 1, "max_bad_share": 1.0, "world_size": world, "global_batch": global_batch, **options}
    return [TrainLoader(sources(kind), processor, rank=rank, **options) for rank in range(world)]


def steps(ranks: Ranks, count: int) -> list[list[list[Batch]]]:
    """Micro-batches of each rank, for some steps."""
    return [[loader.step(1) for loader in ranks] for _ in range(count)]


def names(found: list[list[list[Batch]]]) -> list[list[str]]:
    """The samples of each step in order of their names."""
    return [sorted(n for batches in step for batch in batches for n in batch.sample_ids) for step in found]


def saved(ranks: Ranks) -> list[dict[str, Any]]:
    return json.loads(json.dumps([loader.state_dict() for loader in ranks]))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("form", "kind"), [("batch", "map"), ("packed", "map"), ("sample", "stream"), *((form, "mixed") for form in FORMS)]
)
def test_the_samples_of_a_step(form: str, kind: str, processor: Processor) -> None:
    expected = names(steps(make(kind, processor, **FORMS[form]), 2))
    assert all(len(step) == 16 for step in expected)
    for world in WORLDS[1:]:
        found = steps(make(kind, processor, world, **FORMS[form]), 2)
        assert names(found) == expected
        assert all(batches for step in found for batches in step)
        most = {"packed": 9, "sample": 3}.get(form, 4)
        assert max(b.num_samples for step in found for batches in step for b in batches) <= most
        if form != "packed":
            assert all(len({len(batches) for batches in step}) == 1 for step in found)


def test_the_size_of_micro_batches_changes_nothing(processor: Processor) -> None:
    options = {"mixing": "sample", "global_batch": 7}
    expected = names(steps(make("mixed", processor, **options), 2))
    for size in (1, 2, 3, 5, 100):
        found = steps(make("mixed", processor, 2, batch_size=size, **options), 2)
        assert names(found) == expected
        assert max(len(batch.ids) for step in found for batches in step for batch in batches) <= size
    own = names(steps(make("mixed", processor, packing=Packing(max_tokens=90), global_batch=7), 2))
    assert own == expected  # packing mixes by sample


@pytest.mark.parametrize("count", [1, 7, 8, 64, 100])
def test_micro_batches_divide_a_step(count: int) -> None:
    for world in range(1, min(count, 9) + 1):
        for most in (1, 2, 5, count, count + 3):
            parts = [micro_batches(count, most, rank, world) for rank in range(world)]
            assert [k for own in parts for part in own for k in range(count)[part]] == list(range(count))
            sizes = [part.stop - part.start for own in parts for part in own]
            assert 0 < max(sizes) <= most and max(sizes) - min(sizes) <= 1 and all(parts)
            numbers = {len(own) for own in parts}
            assert max(numbers) == -(-count // (most * world)) and max(numbers) - min(numbers) <= 1
            assert len(numbers) == 1 or most == 1


def test_a_micro_batch_is_the_same_on_whichever_rank(processor: Processor) -> None:
    """Up to the seed of its dropout, where their size times the number of processes divides the step."""
    found = []
    for world in (1, 2, 4):
        ranks = make("mixed", processor, world, mixing="sample", batch_size=4)
        found.append([fingerprint(batch) for step in steps(ranks, 2) for batches in step for batch in batches])
    assert found[0] == found[1] == found[2] and len(found[0]) == 8
    seeds = [batch.seed for step in steps(make("mixed", processor), 3) for batches in step for batch in batches]
    assert len(set(seeds)) == len(seeds) > 9 and None not in seeds


@pytest.mark.parametrize("form", FORMS)
def test_other_numbers_of_processes_go_on_with_the_same_samples(form: str, processor: Processor) -> None:
    rng = random.SystemRandom()
    size = rng.randrange(16, 25, 2)
    expected = names(steps(make("mixed", processor, global_batch=size, **FORMS[form]), 6))
    for worlds in ((1, 2, 4, 1), [rng.choice(WORLDS) for _ in range(4)]):
        found: list[list[str]] = []
        state: list[dict[str, Any]] = []
        turn = 0
        while len(found) < 6:
            world = worlds[turn % 4]
            ranks = make("mixed", processor, world, global_batch=size, **FORMS[form])
            if state:
                assert len(json.dumps(state[0])) < 2048
                for loader in ranks:
                    loader.load_states(state)
            found += names(steps(ranks, min(rng.randrange(1, 3), 6 - len(found))))
            state, turn = saved(ranks), turn + 1
            counted = sum(c["samples"] for loader in ranks for c in loader.counts.values())
            assert counted == size * len(found)
        assert found == expected, f"global_batch={size}, processes {worlds}"


def test_workers_and_skipped_steps(processor: Processor) -> None:
    (straight,) = make("mixed", processor, **FORMS["packed"])
    expected = [[fingerprint(batch) for batch in straight.step(1)] for _ in range(6)]
    (loader,) = make("mixed", processor, num_workers=2, **FORMS["packed"])
    loader.skip(2, 1)
    assert [[fingerprint(batch) for batch in loader.step(1)] for _ in range(2)] == expected[2:4]
    (resumed,) = make("mixed", processor, **FORMS["packed"])
    resumed.load_states(saved([loader]))  # however far the workers have read ahead
    loader.close()
    resumed.skip(1, 1)
    assert [fingerprint(batch) for batch in resumed.step(1)] == expected[5]


def test_the_state_in_the_middle_of_a_step_is_that_before_it(processor: Processor) -> None:
    (loader,) = make("map", processor)
    before = saved([loader])[0]
    next(loader)
    middle = saved([loader])[0]
    assert {k: before[k] for k in ("step", "position", "sources")} == {
        k: middle[k] for k in ("step", "position", "sources")
    }


def test_the_length_of_an_epoch(processor: Processor) -> None:
    for world in (1, 4):
        assert make("map", processor, world, 5)[0].steps_per_epoch == 4  # 23 records
        assert make("map", processor, world, 5, **FORMS["packed"])[0].steps_per_epoch == 4
    assert make("stream", processor)[0].steps_per_epoch is None
    assert make("mixed", processor)[0].steps_per_epoch is None


def test_shares_of_datasets_do_not_depend_on_micro_batches(processor: Processor) -> None:
    (loader,) = make("mixed", processor)
    assert [c["wanted"] for c in loader.counts.values()] == [0.5, 0.25, 0.25]
    (joint,) = make("mixed", processor, mixing="joint")
    assert [c["wanted"] for c in joint.counts.values()] == pytest.approx([1 / 3, 1 / 2, 1 / 6])


def test_what_cannot_be_divided(processor: Processor) -> None:
    with pytest.raises(ConfigError, match=r"run.global_batch=2: a step has 2 samples for 3 processes"):
        make("map", processor, 3, 2)
    with pytest.raises(ConfigError, match=r"run.global_batch=7 cannot be divided equally among the 2 groups a, b"):
        make("mixed", processor, 1, 7, mixing="joint")
    with pytest.raises(ConfigError, match=r"global_batch=4: a step has 2 samples of each group for 3 processes") as e:
        make("mixed", processor, 3, 4, mixing="joint")
    assert "at least 6" in str(e.value)


def test_options_that_contradict_it() -> None:
    with pytest.raises(ValueError, match="global_batch decides .* accum_grad_iters is 4; set accum_grad_iters to 1"):
        RunConfig(global_batch=8, accum_grad_iters=4)
    with pytest.raises(ValueError, match="loss_reduction: batches depends on how a step is cut"):
        RunConfig(global_batch=8, loss_reduction="batches")


def test_starting_and_ending_it_within_a_run(processor: Processor, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(logging.getLogger("vlm"), "propagate", True)
    plain = make("mixed", processor, global_batch=None)
    steps(plain, 3)
    (loader,) = make("mixed", processor)
    with caplog.at_level(logging.WARNING, "vlm"):
        loader.load_states(saved(plain))
    assert "run.global_batch changed from None to 16" in caplog.text
    steps([loader], 2)
    (back,) = make("mixed", processor, global_batch=None)
    back.load_states(saved([loader]))
    assert back.state_dict()["global_batch"] is None and back.step(2)
    packed = make("mixed", processor, global_batch=None, **FORMS["packed"])
    steps(packed, 3)
    with pytest.raises(DataError, match=r"\d+ samples of the saved run wait for a batch, but run.global_batch lets"):
        make("mixed", processor, **FORMS["packed"])[0].load_states(saved(packed))
