"""RefCOCO, RefCOCO+ and RefCOCOg: from a phrase to the box of the object."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.datasets.formats.boxes import corners_of, image_size
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.boxes.toolkit import toolkit_records
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.spec import Spec
from vlm.tasks.scoring.boxes import (
    NO_BOX,
    Box,
    has_center,
    has_hundredths,
    iou,
    read_box,
    read_floats,
    read_hundredths,
    scaled,
    without_spaces,
)
from vlm.tasks.scoring.statistics import Metric, per_item

ALL = "all"
"""The split that is every split whose file is there, with a score for each."""
TRAIN = "train"
"""The split of few-shot examples; not one of ``all``."""
IMAGE = 27
"""Length of COCO's image name at the start of ``img_id``."""
NOT_ANSWERED = "(left out by the script)"
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


class _Referred(StandardBenchmark):
    yaml = "refcoco"
    title: ClassVar[str]
    name: ClassVar[str]
    splits: ClassVar[list[str]]
    split_by: ClassVar[str] = "unc"  # whose split the papers use

    @classmethod
    def spec(cls) -> Spec:
        spec = super().spec()
        files = [file.replace("{name}", cls.name) for file in spec.files]
        return replace(spec, title=cls.title, files=files, splits=[ALL, *cls.splits, TRAIN])


@register_benchmark("refcoco")
class RefCoco(_Referred):
    """RefCOCO: the box of the object that a phrase refers to, by place and look."""

    title, name, splits = "RefCOCO", "refcoco", ["val", "testA", "testB"]

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Phrases with their boxes."""
        return referred(RefCoco, files)


@register_benchmark("refcoco+")
class RefCocoPlus(_Referred):
    """RefCOCO+: as RefCOCO, with phrases that do not say where the object is."""

    title, name, splits = "RefCOCO+", "refcoco+", ["val", "testA", "testB"]

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Phrases with their boxes."""
        return referred(RefCocoPlus, files)


@register_benchmark("refcocog")
class RefCocoG(_Referred):
    """RefCOCOg: as RefCOCO, with longer phrases."""

    title, name, splits, split_by = "RefCOCOg", "refcocog", ["val", "test"], "umd"

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Phrases with their boxes."""
        return referred(RefCocoG, files)


def referred(benchmark: type[_Referred], files: Files) -> Iterator[Item]:
    """Records ``{"img_id", "sents", "bbox": [x, y, width, height], "height", "width"}``, one for each phrase.

    They are made of the files of the refer toolkit where there is no such file. The phrases of an object have its
    ``img_id``; the id of the question adds their number: ``..._10#0``.

    Raises DataError: a box that is not one, or two boxes of one object.
    """
    seen, boxes = Counter[str](), dict[str, Box]()
    toolkit = _toolkit(benchmark, files)
    splits = _splits(benchmark, files, bool(toolkit))
    found = toolkit_records(files, toolkit, splits) if toolkit else {}
    for split in splits:
        patterns = [p.replace("{split}", split) for p in benchmark.spec().files]
        records = found[split] if toolkit else files.json(*patterns)
        where = str(files.used[0] if toolkit else files.used[-1])
        for record in records:
            name = str(record["img_id"])
            size = image_size(record, f"{where}: {name}")
            box = corners_of(record["bbox"], size, f"{where}: {name}")
            if boxes.setdefault(name, box) != box:
                raise DataError(f"{where}: {name} has two different boxes", fix="give the original file")
            if not isinstance(record["sents"], str):
                raise DataError(f"{where}: {name}: sents is {record['sents']!r:.60}, expected one phrase")
            kind = {"type": split} if files.split == ALL else {}
            fields = kind | {"split": split, "object": name, "width": size[0], "height": size[1]}
            reference = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
            image = files.image(f"{name[:IMAGE]}.jpg", where)
            yield Item(f"{name}#{seen[name]}", record["sents"], (image,), reference, fields)
            seen[name] += 1


def _there(benchmark: type[_Referred], files: Files) -> list[str]:
    """The splits whose JSON file is in the folder."""
    patterns = benchmark.spec().files
    return [s for s in benchmark.splits if any((files.annotations / p.format(split=s)).is_file() for p in patterns)]


def _splits(benchmark: type[_Referred], files: Files, toolkit: bool) -> list[str]:
    if files.split != ALL:
        return [files.split]
    if files.annotations.is_file():
        return [files.annotations.stem.rpartition("_")[2]]
    return benchmark.splits if toolkit else _there(benchmark, files) or benchmark.splits[:1]


def _toolkit(benchmark: type[_Referred], files: Files) -> tuple[str, str] | None:
    """References and instances of the refer toolkit, if they are there and no JSON file of a split is."""
    if files.annotations.is_file() or _there(benchmark, files):
        return None
    names = (f"refs({benchmark.split_by}).p", "instances.json")
    for folder in (f"{benchmark.name}/", ""):
        if all((files.annotations / (folder + name)).is_file() for name in names):
            return folder + names[0], folder + names[1]
    return None


def any_form(output: str, item: Item) -> str | None:
    """The first box, in any form that models write, as fractions."""
    return _text(read_box(output))


def hundredths(output: str, item: Item) -> str | None:
    """The box of an answer that begins with ``{<x1><y1><x2><y2>}`` and has no other number."""
    return _text(read_hundredths(output))


def floats(output: str, item: Item) -> str | None:
    """The first four numbers in square brackets."""
    return _text(read_floats(output))


def exclusive(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The share of boxes with an IoU of 0.5 or more in pixels, and the mean IoU."""
    found = [iou(_pixels(a, i), _reference(i)) for i, a in zip(items, answers, strict=True)]
    return [_metric("accuracy", items, [f >= 0.5 for f in found]), _metric("iou", items, found)]


def inclusive(items: Sequence[Item], answers: Sequence[str]) -> Metric:
    """The share of boxes with an IoU above 0.5, where the pixels of both corners belong to a box."""
    pairs = [(a, i) for i, a in zip(items, answers, strict=True)]
    found = [bool(a) and iou(_pixels(a, i), _reference(i), plus_one=True) > 0.5 for a, i in pairs]
    return _metric("accuracy", items, found)


def fractions(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """Shares of boxes with an IoU of at least a threshold, the mean IoU, and the share with the center in the box.

    An answer without a box is the box of four zeros.
    """
    truth = [_fractions(item) for item in items]
    boxes = [_box(answer) for answer in answers]
    found = [iou(t, b) for t, b in zip(truth, boxes, strict=True)]
    at = [_metric(f"accuracy at {t}", items, [f >= t for f in found]) for t in THRESHOLDS]
    center = [has_center(t, b) for t, b in zip(truth, boxes, strict=True)]
    return [*at, _metric("iou", items, found), _metric("center", items, center)]


def published_files(items: Sequence[Item], outputs: Sequence[str]) -> Mapping[str, str]:
    """A file of each split in the published form: object -> its answers, without those that have no box in braces."""
    result: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for item, output in zip(items, outputs, strict=True):
        if has_hundredths(output):
            result[item.fields["split"]][item.fields["object"]].append(without_spaces(output))
    return {f"{split}.json": json.dumps(objects) for split, objects in result.items()}


def read_published(data: Any, items: Sequence[Item]) -> dict[str, str] | None:
    """The answers of a file in the published form: which phrase of an object an answer is to makes no difference."""
    if not (isinstance(data, dict) and data and all(isinstance(answers, list) for answers in data.values())):
        return None
    names = {item.id for item in items}
    result = dict.fromkeys(names, NOT_ANSWERED)
    result |= {f"{name}#{k}": str(answer) for name, answers in data.items() for k, answer in enumerate(answers)}
    return result


def example_answer(item: Item) -> str:
    """What an example before a question answers: ``[0.12, 0.30, 0.55, 0.88]``."""
    return "[" + ", ".join(f"{value:.2f}" for value in _fractions(item)) + "]"


def _text(box: Box | None) -> str | None:
    return None if box is None else json.dumps(box)


def _box(answer: str) -> Box:
    if not answer:
        return NO_BOX
    a, b, c, d = json.loads(answer)
    return a, b, c, d


def _pixels(answer: str, item: Item) -> Box:
    return scaled(_box(answer), item.fields["width"], item.fields["height"])


def _reference(item: Item) -> Box:
    x1, y1, x2, y2 = item.references.values()
    return x1, y1, x2, y2


def _fractions(item: Item) -> Box:
    x1, y1, x2, y2 = _reference(item)
    width, height = item.fields["width"], item.fields["height"]
    return x1 / width, y1 / height, x2 / width, y2 / height


def _metric(label: str, items: Sequence[Item], values: Sequence[float]) -> Metric:
    return per_item(
        label, [i.id for i in items], np.asarray(values, dtype=np.float64), groups=[i.fields.get("type") for i in items]
    )
