"""Whatever one record raises makes it a bad record, in training and in ``vlm data check`` alike."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm.common.errors import DataError, UserError
from vlm.common.types import Image, Message, Sample
from vlm.config.types import DatasetEntry, Part
from vlm.datasets.base import message, read_record
from vlm.datasets.formats.regions import Regions
from vlm.datasets.formats.table.table import Table
from vlm.datasets.inspect.check import check_dataset
from vlm.datasets.inspect.scan import Opened
from vlm.datasets.loading.quarantine import Quarantine, too_many
from vlm.datasets.loading.sources import BadRecord, Source
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.processors import processor as processor_module
from vlm.processors.processor import Processor

GOOD = {"image": "good.png", "question": "What?", "answer": "red"}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "surrogate": ({"question": "q\ud800"}, r"half a character, the lone surrogate \\ud800"),
    "surrogate in the answer": ({"answer": "\udcff"}, r"the lone surrogate \\udcff"),
    "surrogate in the path": ({"image": "a\ud800.png"}, "no file|cannot be read"),
    "null byte": ({"image": "a\0b.png"}, "no file|embedded null byte"),
    "long name": ({"image": "a" * 300}, "no file|cannot be read|no such file"),
    "placeholder": ({"question": "<ImageHere> and <ImageHere>"}, "2 image placeholders but 1 media"),
    "device": ({"image": "/dev/zero"}, "is not a regular file"),
    "folder": ({"image": "/"}, "is a folder"),
    "text": ({"image": "text.png"}, "not an image format"),
    "cut": ({"image": "cut.png"}, "corrupt or truncated"),
    "empty answer": ({"answer": ""}, "the answer is empty"),
    "base64": ({"image": "data:image/png;base64,!"}, "not base64"),
}


@pytest.fixture
def source(tmp_path: Path, image_of: Callable[..., bytes]) -> Source:
    """Records with every fault among a hundred good ones."""
    (tmp_path / "good.png").write_bytes(image_of(1))
    (tmp_path / "cut.png").write_bytes(image_of(1)[:45])
    (tmp_path / "text.png").write_text("hello")
    rows = [{**GOOD, **fault} for fault, _ in FAULTS.values()]
    spread = [row for bad in rows for row in (bad, *[GOOD] * 8)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, spread)))
    return Source("mine", Table(Table.Config(str(tmp_path / "a.jsonl"), image_path=str(tmp_path))), batch_size=9)


def opened(source: Source) -> Opened:
    entry = DatasetEntry(name="mine", format=Part("table", None, {}), batch_size=2)
    return Opened("mine", entry, source, trained=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_leaves_out_what_the_check_finds(
    source: Source, processor: Processor, tmp_path: Path, workers: int
) -> None:
    loader = TrainLoader([source], processor, seed=1, num_workers=workers, output_dir=tmp_path, max_bad_share=0.5)
    batches = list(islice(loader, len(source.dataset) // 9))
    loader.close()
    assert all(batch.num_samples == 9 for batch in batches)
    trained = [json.loads(x) for x in (tmp_path / "quarantine.jsonl").read_text("utf-8").split("\n") if x]
    with (tmp_path / "check.jsonl").open("w", encoding="utf-8") as file:
        report = check_dataset(
            opened(source), processor, processor.image, pixels=True, workers=workers, quarantine=file
        )
    found = [json.loads(x) for x in (tmp_path / "check.jsonl").read_text("utf-8").split("\n") if x]
    wanted = {str(9 * k) for k in range(len(FAULTS))}
    assert {b["key"] for b in trained} == {b["key"] for b in found} == wanted
    assert report.samples == 8 * len(FAULTS)
    reasons = {b["key"]: b["reason"] for b in trained}
    for k, (_, words) in enumerate(FAULTS.values()):
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(reasons[str(9 * k)])


def test_without_a_tokenizer_the_check_still_fills_the_template(source: Source, processor: Processor) -> None:
    options: dict[str, Any] = {"pixels": True, "template": processor.template}
    report = check_dataset(opened(source), None, processor.image, **options)
    assert report.bad == len(FAULTS)


class Broken:
    """A format of somebody else, which trusts its records."""

    def __init__(self, records: list[Any]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        return Sample((message("user", record["question"][0]["text"]), message("assistant", str(1 / record["n"]))))


@pytest.mark.parametrize("record", [None, {}, {"question": []}, {"question": [{"text": 3}]}, {"question": "a", "n": 0}])
def test_whatever_a_format_raises_is_the_fault_of_the_record(record: Any) -> None:
    with pytest.raises(UserError):
        read_record(Broken([record]), 0)


def test_a_format_that_always_fails_ends_the_run(processor: Processor) -> None:
    with pytest.raises(
        DataError, match=r"11 of 11 records could not be used[^$]*malformed record .KeyError: 'question'"
    ):
        next(TrainLoader([Source("mine", Broken([{}] * 50), 2)], processor, seed=1))


def test_malformed_records_of_regions(tmp_path: Path) -> None:
    regions = {"region_id": 1, "image_id": 1, "phrase": "a", "x": 1, "y": 1, "width": 3, "height": 3}
    trees: list[Any] = [{"id": 1, "regions": [regions, None, {**regions, "image_id": [1]}]}, 7, {"id": 2, "regions": 5}]
    (tmp_path / "region_descriptions.json").write_text(json.dumps(trees))
    images: list[Any] = [{"image_id": 1, "url": "x/y/1.jpg", "width": 9, "height": 9}, {"image_id": [2]}, "x"]
    (tmp_path / "image_data.json").write_text(json.dumps(images))
    data = Regions(Regions.Config(str(tmp_path)))
    results = []
    for k in range(len(data)):
        try:
            results.append(bool(read_record(data, k)))
        except DataError:
            results.append(False)
    assert results == [True, False, False, False, False]


def test_one_record_that_is_not_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([GOOD, 7, GOOD]))
    data = Table(Table.Config(str(tmp_path / "a.json")))
    with pytest.raises(DataError, match="record 1: expected an object, found int"):
        read_record(data, 1)
    assert len(data) == 3


def test_the_pixels_of_a_sample_are_limited(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [Image(np.zeros((10, 10, 3), np.uint8)) for _ in range(5)]
    sample = Sample((Message("user", [*images, "What?"]), Message("assistant", "red")), id="7")
    assert len(processor.encode_train(sample, random.Random(0)).media) == 5
    monkeypatch.setattr(processor_module, "SAMPLE_PIXELS", 450)
    with pytest.raises(DataError, match="sample 7: its images have more than 450 pixels together"):
        processor.encode_train(sample, random.Random(0))


def test_names_that_break_lines_and_encodings(tmp_path: Path) -> None:
    first = Quarantine(tmp_path, max_share=1)
    records = [
        BadRecord("s", key, DataError(f"no file {key}").args[0]) for key in ("a\x85b", "c\u2028d", "e\udcfff", "g\nh")
    ]
    first.add("s", 0, records)
    again = Quarantine(tmp_path, max_share=1)
    again.add("s", 0, records)
    assert len((tmp_path / "quarantine.jsonl").read_text("utf-8").split("\n")) == 5


def test_one_rule_for_too_many() -> None:
    assert not too_many(2, 2, 0.01) and too_many(3, 60, 0.01) and not too_many(5, 300, 0.01)
    assert too_many(21, 2000, 0.01) and not too_many(20, 2000, 0.01)
