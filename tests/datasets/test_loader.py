from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlm.common.errors import ConfigError, DataError
from vlm.common.types import Batch, Image, Message, Sample, Text
from vlm.datasets.formats.caption_folder import CaptionFolder
from vlm.datasets.formats.web_shards import WebShards
from vlm.datasets.loading.sources import Source, build_sources
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.datasets.loading.valid_loader import ValidLoader
from vlm.processors.caption_cleaning import BlipCaption
from vlm.processors.processor import Processor

Make = Callable[..., Path]


def folder(root: Path) -> CaptionFolder:
    return CaptionFolder(CaptionFolder.Config(storage=str(root), image_ext=".png"))


@pytest.fixture
def mixed(caption_folder: Make, shards: Make) -> list[Source]:
    """A map-style source of 11 records and a stream of 17, both passed several times by the tests."""
    stream = WebShards(WebShards.Config(storage=str(shards((6, 7, 4))), shuffle=5))
    clean = BlipCaption(BlipCaption.Config())
    return [Source("folder", folder(caption_folder(11)), 4, 2.0, clean), Source("shards", stream, 2, 1.0, clean)]


def fingerprint(batch: Batch) -> tuple[Any, ...]:
    fields = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    return tuple(f.tolist() if isinstance(f, torch.Tensor) else f for f in fields)


def first(sources: Sequence[Source], processor: Processor, count: int, **options: Any) -> list[tuple[Any, ...]]:
    loader = TrainLoader(sources, processor, **{"seed": 1, **options})
    got = [fingerprint(b) for b in islice(loader, count)]
    loader.close()
    return got


def test_batches_do_not_depend_on_the_number_of_workers(mixed: list[Source], processor: Processor) -> None:
    straight = first(mixed, processor, 14)
    assert len({str(b) for b in straight}) == 14
    assert first(mixed, processor, 14, num_workers=1) == straight
    assert first(mixed, processor, 14, num_workers=2) == straight
    assert first(mixed, processor, 14, seed=2) != straight


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resume_is_exact_at_any_batch(mixed: list[Source], processor: Processor, workers: int) -> None:
    straight = first(mixed, processor, 16)
    loader = TrainLoader(mixed, processor, seed=1, num_workers=workers)
    for stop in (3, 9):
        while loader.state_dict()["step"] < stop:
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
        assert state["step"] == stop
        resumed = TrainLoader(mixed, processor, seed=1, num_workers=workers)
        resumed.load_state_dict(state)
        assert [fingerprint(b) for b in islice(resumed, 5)] == straight[stop : stop + 5]
        resumed.close()
    loader.load_state_dict(state)  # back within one loader
    assert [fingerprint(b) for b in islice(loader, 3)] == straight[9:12]
    loader.close()


def test_two_processes_see_what_one_sees(mixed: list[Source], processor: Processor) -> None:
    whole = TrainLoader(mixed, processor, seed=1)
    halves = [dataclasses.replace(s, batch_size=s.batch_size // 2) for s in mixed]
    ranks = [TrainLoader(halves, processor, seed=1, rank=r, world_size=2) for r in range(2)]
    for _ in range(12):
        batch, parts = next(whole), [next(r) for r in ranks]
        for rank, part in enumerate(parts):
            assert part.sample_ids == batch.sample_ids[rank::2]
            width = part.ids.shape[1]
            assert torch.equal(part.ids, batch.ids[rank::2, :width])
            assert torch.equal(part.labels, batch.labels[rank::2, :width])
            assert part.pixels is not None
            assert torch.equal(part.pixels, batch.pixels[rank::2])
        assert sum(p.num_targets for p in parts) == batch.num_targets


def test_the_loader_leaves_the_random_state_of_the_run_alone(mixed: list[Source], processor: Processor) -> None:
    before = torch.random.get_rng_state(), random.getstate()
    first(mixed, processor, 3, num_workers=1)
    list(ValidLoader(mixed, processor))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_text_processor_only_where_the_format_asks(mixed: list[Source], processor: Processor) -> None:
    texts: dict[int, list[str]] = {4: [], 2: []}
    for batch in islice(TrainLoader(mixed, processor, seed=1), 8):
        for row, labels in enumerate(batch.labels):
            texts[len(batch.ids)].append(processor.tokenizer.decode(labels[labels >= 0].tolist()))
            assert batch.media_pos[row] == 1
    assert all(t.startswith("the ") and "!" not in t for t in texts[2])
    assert texts[4]


def test_counts_per_source(mixed: list[Source], processor: Processor) -> None:
    loader = TrainLoader(mixed, processor, seed=1)
    sizes = [batch.num_samples for batch in islice(loader, 10)]
    counts = loader.counts
    assert counts["folder"]["samples"] + counts["shards"]["samples"] == sum(sizes)
    assert counts["folder"]["samples"] == sum(s for s in sizes if s == 4)
    assert counts["folder"]["bad"] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_records_are_replaced_written_down_and_counted(
    tmp_path: Path, caption_folder: Make, shards: Make, processor: Processor, workers: int
) -> None:
    stream = WebShards(WebShards.Config(storage=str(shards((9, 9), bad=(4,)))))
    sources = [Source("folder", folder(caption_folder(12, bad=(3, 4))), 4), Source("shards", stream, 4)]
    out = tmp_path / f"run{workers}"
    options = {"output_dir": out, "max_bad_share": 0.9, "num_workers": workers}
    got = first(sources, processor, 12, **options)
    ids = {i for batch in got for i in batch[-1]}
    assert not ids & {"3", "4", "000004"}
    assert {"5", "000005"} <= ids
    assert all(len(batch[-1]) == 4 for batch in got)
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted((line["source"], line["key"]) for line in lines) == [
        ("folder", "3"),
        ("folder", "4"),
        ("shards", "000004"),
    ]
    assert all("truncated" in line["reason"] for line in lines)
    assert first(sources, processor, 12, max_bad_share=0.9) == got


def test_bad_records_are_replaced_alike_in_two_processes(
    caption_folder: Make, shards: Make, processor: Processor
) -> None:
    stream = WebShards(WebShards.Config(storage=str(shards((30,), bad=(2, 3, 11)))))
    sources = [Source("folder", folder(caption_folder(12, bad=(3, 4, 9))), 4), Source("shards", stream, 4)]
    whole = first(sources, processor, 12, max_bad_share=1.0)
    halves = [dataclasses.replace(s, batch_size=2) for s in sources]
    parts = [first(halves, processor, 12, max_bad_share=1.0, rank=r, world_size=2) for r in range(2)]
    for step in range(12):
        for rank in range(2):
            assert parts[rank][step][-1] == whole[step][-1][rank::2]


def test_too_many_bad_records_stop_the_run(caption_folder: Make, processor: Processor) -> None:
    sources = [Source("folder", folder(caption_folder(20, bad=(1, 5, 9, 13))), 5)]
    loader = TrainLoader(sources, processor, seed=1)
    with pytest.raises(DataError, match="dataset folder: .* could not be used, allowed are 1.0%"):
        list(islice(loader, 20))


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_records(caption_folder: Make, processor: Processor, workers: int, tmp_path: Path) -> None:
    sources = [Source("folder", folder(caption_folder(3, bad=(0, 1, 2))), 2)]
    loader = TrainLoader(sources, processor, seed=1, num_workers=workers, output_dir=tmp_path)
    with pytest.raises(DataError, match=r"3 of 3 records could not be used, allowed are 1.0%:\n.*truncated"):
        next(loader)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 3
    loader = TrainLoader(sources, processor, seed=1, num_workers=workers, max_bad_share=1.0)
    with pytest.raises(DataError, match="records in a row cannot be used.*truncated"):
        next(loader)


class Marked:
    """Its prompts have a mark too many."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        question = Message("user", (Text("<ImageHere><ImageHere>"), Image(torch.zeros(3, 4, 4))))
        return Sample((question, Message("assistant", (Text("yes"),))))


@pytest.mark.parametrize("workers", [0, 1])
def test_placeholders_that_do_not_fit_are_a_bad_record(processor: Processor, workers: int) -> None:
    with pytest.raises(DataError, match=r"4 of 4 records(.|\n)*2 image placeholders but 1 media"):
        next(TrainLoader([Source("marked", Marked(), 2)], processor, seed=1, num_workers=workers))


def test_empty_and_missing_datasets_before_the_first_step(
    caption_folder: Make, shards: Make, processor: Processor
) -> None:
    with pytest.raises(DataError, match="no dataset to train on"):
        TrainLoader([], processor, seed=1)
    with pytest.raises(DataError, match="dataset folder is empty: 0 records"):
        TrainLoader([Source("folder", folder(caption_folder(0)))], processor, seed=1)
    stream = WebShards(WebShards.Config(storage=str(shards((0,)))))
    with pytest.raises(DataError, match="dataset shards is empty: 0 records"):
        TrainLoader([Source("shards", stream)], processor, seed=1)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_empty_validation_data_is_no_silent_pass(
    caption_folder: Make, shards: Make, processor: Processor, kind: str
) -> None:
    if kind == "folder":
        dataset: Any = folder(caption_folder(0))
    else:
        dataset = WebShards(WebShards.Config(storage=str(shards((0,)))))
    with pytest.raises(DataError, match=f"dataset {kind} is empty"):
        list(ValidLoader([Source(kind, dataset)], processor))


def test_steps_per_epoch(mixed: list[Source], processor: Processor) -> None:
    assert TrainLoader(mixed[:1], processor, seed=1).steps_per_epoch == 2
    assert TrainLoader(mixed[:1], processor, seed=1, world_size=2).steps_per_epoch == 1
    assert TrainLoader(mixed[1:], processor, seed=1).steps_per_epoch is None
    assert TrainLoader(mixed, processor, seed=1).steps_per_epoch is None


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_is_one_ordered_pass(mixed: list[Source], processor: Processor, workers: int) -> None:
    loader = ValidLoader(mixed, processor, num_workers=workers)
    ids = [b.sample_ids for b in loader]
    assert [i for b in ids for i in b] == [str(k) for k in range(11)] + [f"{k:06d}" for k in range(17)]
    assert [len(b) for b in ids] == [4, 4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 1]
    assert [b.sample_ids for b in loader] == ids
    assert [i for b in ValidLoader(mixed, processor, max_samples=3) for i in b.sample_ids] == [
        *"012",
        "000000",
        "000001",
        "000002",
    ]


def test_validation_ranks_share_the_pass(mixed: list[Source], processor: Processor) -> None:
    parts = [ValidLoader(mixed, processor, rank=r, world_size=3) for r in range(3)]
    ids = [i for p in parts for b in p for i in b.sample_ids]
    assert sorted(ids) == sorted([str(k) for k in range(11)] + [f"{k:06d}" for k in range(17)])


def test_validation_leaves_bad_records_out(caption_folder: Make, processor: Processor) -> None:
    loader = ValidLoader([Source("folder", folder(caption_folder(7, bad=(2,))), 3)], processor)
    assert [b.sample_ids for b in loader] == [["0", "1"], ["3", "4", "5"], ["6"]]


def entry(**options: Any) -> SimpleNamespace:
    values = {"batch_size": 2, "sample_ratio": None, "text_processor": {}, "vis_processor": {}, "group": "", **options}
    return SimpleNamespace(**{"data_type": "images", **values})


def test_from_config(caption_folder: Make, shards: Make, processor: Processor, tmp_path: Path) -> None:
    one = SimpleNamespace(
        name="caption_folder", config=CaptionFolder.Config(storage=str(caption_folder(5)), image_ext=".png")
    )
    two = SimpleNamespace(name="web_shards", config=WebShards.Config(storage=str(shards((5,)))))
    vis = {"train": {"name": "blip2_image_train", "image_size": 4}}
    text = {"train": {"name": "blip_caption", "max_words": 1}}
    entries = {
        "align": entry(format=one, vis_processor=vis),
        "web": entry(format=two, text_processor=text, sample_ratio=3),
    }
    loader = TrainLoader.from_config(entries, processor, seed=0, output_dir=tmp_path)
    assert [(s.name, s.batch_size, s.ratio) for s in loader.sources] == [("align", 2, 1.0), ("web", 2, 3.0)]
    decode = processor.tokenizer.decode
    batches = list(islice(loader, 8))
    assert any(decode(b.labels[0][b.labels[0] >= 0].tolist()) == "the\n" for b in batches)
    valid = list(ValidLoader.from_config(entries, processor))
    assert [b.num_samples for b in valid] == [2, 2, 1] * 2
    assert {decode(row[row >= 0].tolist()) for b in valid[3:] for row in b.labels} == {"the\n"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vis_processor": {"train": {"image_size": 224}}}, "image_size is 224, but the model takes images of 4"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"sample_ratio": -1}, "sample_ratio -1.0"),
    ],
)
def test_entries_that_do_not_fit(caption_folder: Make, processor: Processor, options: dict, words: str) -> None:
    config = CaptionFolder.Config(storage=str(caption_folder(5)))
    entries = {"align": entry(format=SimpleNamespace(name="caption_folder", config=config), **options)}
    with pytest.raises(ConfigError, match=words):
        build_sources(entries, processor)


def test_ratios_must_leave_something_to_draw(mixed: list[Source], processor: Processor) -> None:
    with pytest.raises(ConfigError, match="sample_ratio of folder, shards: none is above 0"):
        TrainLoader([dataclasses.replace(s, ratio=0.0) for s in mixed], processor, seed=1)
