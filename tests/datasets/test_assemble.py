"""FirstFitPacker rows and length groups: what may stand together."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm.common.errors import DataError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Example, Message, Sample, Text
from vlm.config.run import Packing
from vlm.datasets.loading.batching import FirstFitPacker, LengthGrouped
from vlm.datasets.loading.data_stats import DataStats
from vlm.datasets.loading.sources import Source
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.datasets.loading.worker import EncodedSample, WorkerResult
from vlm.processors.collate import VisualTokens
from vlm.processors.processor import Processor

from .tools import Table, Tape


def item(k: int, tokens: int, media: int = 0, source: int = 0) -> EncodedSample:
    """A sample of so many positions; only lengths matter here."""
    return EncodedSample(
        (source, 0, k), Example([1] * tokens, [IGNORE_INDEX] * tokens, [torch.zeros(1)] * media, str(k)), tokens
    )


def feed(assembler: FirstFitPacker | LengthGrouped, items: list[EncodedSample]) -> list[list[list[EncodedSample]]]:
    """All batches after one delivery."""
    assembler.add(WorkerResult(items))
    found = []
    while (rows := assembler.pop()) is not None:
        found.append(rows)
    return found


def test_first_fit_over_open_rows() -> None:
    packed = FirstFitPacker(10, 2, open_rows=2, batch_size=1)
    assert feed(packed, [item(0, 6), item(1, 7), item(2, 4), item(3, 3)]) == []  # rows 0+2 and 1+3 are full
    assert [[i.key[2] for i in row] for row in feed(packed, [item(4, 5)])[0]] == [[0, 2]]
    assert packed.state_dict()["open"] == [[[0, 0, 1], [0, 0, 3]], [[0, 0, 4]]]
    assert feed(packed, [item(5, 1, media=2), item(6, 1, media=1)])[0][0][0].key[2] == 1
    assert packed.state_dict()["open"] == [[[0, 0, 4], [0, 0, 5]], [[0, 0, 6]]]


def test_no_row_waits_for_ever() -> None:
    """A row that nothing fits into any more: full of images, or a little less full than all that follow."""
    packed = FirstFitPacker(100, 2, open_rows=2, batch_size=1)
    found = feed(packed, [item(0, 10, media=2), *(item(k, 30, media=1) for k in range(1, 6))])
    assert [i.key[2] for i in found[0][0]] == [0]
    packed = FirstFitPacker(100, None, open_rows=2, batch_size=1)
    found = feed(packed, [item(0, 80), *(item(k, 90) for k in range(1, 40))])
    assert [row[0].key[2] for batch in found for row in batch][:18] == [*range(1, 17), 0, 17]


def llava_like(rng: random.Random) -> tuple[int, int]:
    """Positions and images: dialogues with an image of 256 tokens, short answers, and text only."""
    kind = rng.random()
    text = int(min(max(rng.lognormvariate(5.3, 0.6), 40), 1500))
    if kind < 0.6:
        return 256 + text, 1
    return (256 + int(rng.uniform(25, 80)), 1) if kind < 0.8 else (text, 0)


def positions(batches: list) -> int:
    stats = DataStats()
    for batch in batches:
        stats.add(batch, ["a"])
    return stats.positions


@pytest.mark.parametrize("batch_size", [1, 4])
def test_waste_on_a_llava_like_mixture(batch_size: int) -> None:
    rng = random.Random(0)
    options = Packing(max_tokens=2048, max_media=8)
    packed = FirstFitPacker(options.max_tokens, options.max_media, options.open_rows, batch_size)
    items = [item(k, *llava_like(rng)) for k in range(6000)]
    found = feed(packed, items)
    rows = [row for batch in found for row in batch]
    assert all(sum(i.tokens for i in row) <= 2048 and sum(len(i.example.media) for i in row) <= 8 for row in rows)
    tokens = sum(i.tokens for row in rows for i in row)
    assert 1 - tokens / positions(found) <= 0.03
    assert 1 - tokens / (len(rows) * 2048) <= 0.03  # and of what a row may hold
    plain = [[[i] for i in items[k : k + 4]] for k in range(0, 6000, 4)]
    assert 1 - sum(i.tokens for i in items) / positions(plain) > 0.25


def test_length_groups_save_padding_and_lose_nothing() -> None:
    rng = random.Random(0)
    groups = LengthGrouped(20, [4], by_source=False, seed=1)
    found = []
    for job in range(59):
        new = feed(groups, [item(job * 4 + j, llava_like(rng)[0]) for j in range(4)])
        assert len(new) == (job >= 19)  # a job for each batch, once the first pool is full
        found += new
    assert len(found) == 40
    assert all(len(batch) == 4 for batch in found)
    assert sorted(row[0].key[2] for batch in found for row in batch) == list(range(160))
    tokens = sum(row[0].tokens for batch in found for row in batch)
    assert 1 - tokens / positions(found) < 0.08
    lengths = [batch[0][0].tokens for batch in found[:20]]
    assert lengths != sorted(lengths)


def test_groups_of_several_sources_stay_apart_and_keep_what_is_left() -> None:
    groups = LengthGrouped(2, [2, 3], by_source=True, seed=1)
    found = feed(groups, [item(k, 9 - k) for k in range(3)])
    found += feed(groups, [item(k, 9 - k, source=1) for k in range(4)])
    assert len(found) == 1
    found += feed(groups, [])
    assert sorted([i.key for row in batch for i in row] for batch in found) == [
        [(0, 0, 1), (0, 0, 0)],
        [(1, 0, 2), (1, 0, 1), (1, 0, 0)],
    ]
    assert groups.state_dict() == {"done": [], "open": [[[0, 0, 2], [1, 0, 3]]], "jobs": 1, "given": 2}


def lengths(batch: Batch, per_frame: int) -> list[tuple[int, int]]:
    """Positions after fusion, and media, of every row."""
    media = torch.bincount(batch.media_row, minlength=len(batch.ids))
    tokens = (batch.segments > 0).sum(1) + media * (per_frame - 1)
    return list(zip(tokens.tolist(), media.tolist(), strict=True))


def test_packed_rows_keep_their_limits_visual_tokens_included(processor: Processor) -> None:
    sources = [Source("table", Table(50), 1), Source("tape", Tape(50), 2)]
    options = Packing(max_tokens=120, max_media=5, open_rows=6)
    loader = TrainLoader(
        sources, processor, seed=1, packing=options, visual_tokens=VisualTokens(per_frame=9), batch_size=3
    )
    most = [0, 0]
    for batch in islice(loader, 40):
        assert len(batch.ids) == 3
        assert (batch.ids == MEDIA_TOKEN).sum() == len(batch.media_row)
        for found in lengths(batch, 9):
            most = [max(a, b) for a, b in zip(most, found, strict=True)]
    assert 110 < most[0] <= 120
    assert most[1] == 5
    assert loader.report()["positions"] >= sum(c["tokens"] for c in loader.counts.values())


def test_packed_and_plain_samples_are_the_same(processor: Processor) -> None:
    def table(loader: TrainLoader, steps: int) -> dict[str, Any]:
        found = {}
        for batch in islice(loader, steps):
            names = iter(batch.sample_ids)
            for row, (ids, segments) in enumerate(zip(batch.ids, batch.segments, strict=True)):
                for number in range(1, int(segments.max()) + 1):
                    here = segments == number
                    own = [m for m in range(len(batch.media_row)) if batch.media_row[m] == row]
                    media = [batch.pixels[m].tolist() for m in own if here[batch.media_pos[m]]]  # type: ignore[index]
                    found[next(names)] = (ids[here].tolist(), batch.labels[row][here].tolist(), media)
        return found

    sources = [Source("table", Table(30), 3), Source("tape", Tape(30), 2)]
    plain = table(TrainLoader(sources, processor, seed=1, mixing="sample"), 80)
    packed = table(TrainLoader(sources, processor, seed=1, packing=Packing(80), num_workers=1), 20)
    assert len(packed) > 40
    assert all(plain[name] == packed[name] for name in packed)


class Long:
    """Record 3 is longer than the rest."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        text = "the " * (50 if index == 3 else 5)
        return Sample((Message("user", (Text("?"),)), Message("assistant", (Text(text),))))


def test_a_sample_longer_than_a_row_is_a_bad_record(processor: Processor, tmp_path: Path) -> None:
    loader = TrainLoader(
        [Source("long", Long())], processor, seed=1, packing=Packing(40, open_rows=2), output_dir=tmp_path,
        max_bad_share=1.0,
    )  # fmt: skip
    used = Counter(name for batch in islice(loader, 20) for name in batch.sample_ids)
    assert used["3"] == 0
    assert used["4"] and used["5"]
    (line,) = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert "sample long/3 has 5" in json.loads(line)["reason"]
    assert "tokens, but run.packing.max_tokens is 40" in json.loads(line)["reason"]
    with pytest.raises(DataError, match=r"has 2 media, but run\.packing\.max_media is 1"):
        next(TrainLoader([Source("table", Table(3, bad=(0, 1)))], processor, seed=1, packing=Packing(99, 1)))


@pytest.mark.parametrize("form", [{"mixing": "sample"}, {"packing": Packing(150)}, {}, {"group_by_length": 5}])
def test_realised_shares_are_those_wanted(processor: Processor, form: dict[str, Any]) -> None:
    """Within four standard deviations of as many independent draws."""
    sources = [Source("table", Table(40), 2, 3.0), Source("tape", Tape(30), 2, 1.0)]
    loader = TrainLoader(sources, processor, seed=3, **form)
    for _ in range(150):
        next(loader)
    counts = loader.counts
    draws = sum(c["samples"] for c in counts.values()) / (1 if "mixing" in form or "packing" in form else 2)
    assert counts["table"]["wanted"] == 0.75
    share = counts["table"]["samples"] / sum(c["samples"] for c in counts.values())
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / draws) ** 0.5


def test_batch_size_of_mixed_samples(processor: Processor) -> None:
    sources = [Source("table", Table(9), 2), Source("tape", Tape(9), 5), Source("off", Table(9), 50, 0.0)]
    assert len(next(TrainLoader(sources, processor, seed=1, mixing="sample")).ids) == 5
    mixed = next(TrainLoader(sources, processor, seed=1, mixing="sample", batch_size=12))
    assert {name[0] for name in mixed.sample_ids} == {"t", "s"}
    assert len(mixed.ids) == 12
    rows = TrainLoader(sources, processor, seed=1, packing=Packing(99))
    assert len(next(rows).ids) == 5
    assert rows.steps_per_epoch is None
    one = TrainLoader(sources[:1], processor, seed=1, mixing="sample", batch_size=3, world_size=2)
    assert one.steps_per_epoch == 1
