from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm.common.types import Image, Sample, Video
from vlm.config.types import DatasetEntry, Part
from vlm.datasets.base import message
from vlm.datasets.formats.web_shards import WebShards
from vlm.datasets.inspect.check import DatasetCheck, Seen, check_dataset, missing_files, reason_kind
from vlm.datasets.inspect.scan import Opened
from vlm.datasets.loading.sources import BadRecord, Source
from vlm.processors.collate import VisualTokens
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor

RECIPE = ImageRecipe(ImageRecipe.Config(size=4))


def opened(storage: Path) -> Opened:
    entry = DatasetEntry(name="mine", format=Part("web_shards", None, {}), batch_size=2)
    return Opened("mine", entry, Source("mine", WebShards(WebShards.Config(str(storage)))))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_with_faults(shards: Callable[..., Path], processor: Processor, workers: int) -> None:
    root = shards((70, 70), bad=(3,))
    damaged = root / "00001.tar"
    damaged.write_bytes(damaged.read_bytes()[: 512 * 150 + 100])
    quarantine = io.StringIO()
    options: dict[str, Any] = {"workers": workers, "quarantine": quarantine, "visual_tokens": VisualTokens(0, 7)}
    report = check_dataset(opened(root), processor, RECIPE, **options)
    assert report.bad == 2 and 70 < report.samples < 140
    half, cut = [json.loads(line) for line in quarantine.getvalue().splitlines()]
    assert "record 000107: no caption" in half["reason"] and "no end marker: truncated" in cut["reason"]
    with_pixels = check_dataset(opened(root), processor, RECIPE, pixels=True, **options)
    assert with_pixels.bad == 3 and with_pixels.samples == report.samples - 1
    assert set(with_pixels.lengths) == set(report.lengths)


def test_the_same_findings_whatever_the_number_of_workers(shards: Callable[..., Path], processor: Processor) -> None:
    root = shards((90, 40))
    one, two = (check_dataset(opened(root), processor, RECIPE, workers=n) for n in (0, 2))
    assert list(one.lengths) == list(two.lengths) and one.targets == two.targets
    few = check_dataset(opened(root), processor, RECIPE, limit=70)
    assert list(few.lengths) == list(one.lengths)[:70]


def test_lengths_are_those_of_the_processor(shards: Callable[..., Path], processor: Processor) -> None:
    data = opened(shards((5,)))
    assert data.source is not None
    report = check_dataset(data, processor, RECIPE, visual_tokens=VisualTokens(2, 7))
    samples = [data.source.dataset.decode(r) for r in data.source.dataset.records(None)]
    examples = [processor.encode_train(s, random.Random(0)) for s in samples]
    assert list(report.lengths) == [len(e.ids) + 8 for e in examples]
    assert report.targets == sum(e.num_targets for e in examples)


def test_without_a_processor_images_are_still_read(shards: Callable[..., Path]) -> None:
    data = opened(shards((6,), bad=(2,)))
    assert check_dataset(data, None, RECIPE).bad == 0
    report = check_dataset(data, None, RECIPE, pixels=True)
    assert (report.bad, report.samples, report.unit) == (1, 5, "characters")


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    parts = [Image(str(tmp_path / "a.png")), Image(b"bytes"), Video([b"frame"]), Video(str(tmp_path / "no.mp4"))]
    assert missing_files(Sample((message("user", *parts),))) == [str(tmp_path / "no.mp4")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no file /a/1.jpg", "no file /b/c/2.jpg"),
        (
            "/x/d.json: record 7: no field 'answer' (it has a, b)",
            "/x/d.json: record 91: no field 'reply' (it has a, b)",
        ),
        ("image /a/1.jpg: empty\n  fix: fetch it", "image /z.png: empty\n  fix: other"),
    ],
)
def test_equal_faults_count_together(one: str, other: str) -> None:
    assert reason_kind(one) == reason_kind(other)
    assert reason_kind("no file /a/1.jpg") != reason_kind("image /a/1.jpg: empty")


def test_verdicts() -> None:
    def report(good: int, bad: int, error: str = "") -> DatasetCheck:
        made = DatasetCheck("mine", "table", 2, error=error, bad=bad)
        made.lengths.extend([5] * good)
        return made

    assert report(100, 2).verdict(0.01) == "", "fewer than three never stop a run"
    assert report(400, 4).verdict(0.01) == ""
    assert "5 of 105 records cannot be used, allowed are 1.0%" in report(100, 5).verdict(0.01)
    assert report(0, 0).verdict(0.5) == "dataset mine: 0 records"
    assert "none of 2 records" in report(0, 2).verdict(0.5)
    assert "cannot be opened: no file" in report(0, 0, "no file").verdict(0.5)


def test_only_the_first_examples_of_a_reason_are_kept() -> None:
    report = DatasetCheck("mine", "table", 2)
    report.add(Seen(bad=[BadRecord("mine", str(k), f"no file /a/{k}.jpg") for k in range(9)]))
    ((kind, (count, examples)),) = report.reasons.items()
    assert (kind, count, [b.key for b in examples]) == ("no file …", 9, ["0", "1", "2"])
