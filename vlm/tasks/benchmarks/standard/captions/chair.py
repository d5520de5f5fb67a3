"""CHAIR: objects that a caption names and that the image does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.common.text import lines_of, read_text
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.captions.coco_objects import groups
from vlm.tasks.benchmarks.standard.captions.shared import COCO_FOLDERS, image_of
from vlm.tasks.benchmarks.standard.captions.shared import result_file as result_file
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.scoring.objects import Objects, singular
from vlm.tasks.scoring.statistics import Metric, per_item

SYNONYMS = "synonyms.txt"
CHOSEN = "image_ids.txt"


@register_benchmark("chair")
class Chair(StandardBenchmark):
    """CHAIR: objects that a caption names and an image of COCO does not have."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """The images of the split with what is in them: segmented objects, and those that people's captions name."""
        instances = files.json("instances_val2014.json", "annotations/instances_val2014.json")
        captions = files.json("captions_val2014.json", "annotations/captions_val2014.json")
        names = {category["id"]: category["name"] for category in instances["categories"]}
        synonyms = _synonyms(files)
        objects = _objects(synonyms)
        missing = [name for name in names.values() if name not in objects.names]
        if missing:
            raise DataError(
                f"{synonyms or files.annotations}: no word for {', '.join(missing)}",
                fix=f"give {SYNONYMS} as CHAIR publishes it, and the annotations of COCO",
            )
        there: dict[int, set[str]] = {image["id"]: set() for image in instances["images"]}
        for note in instances["annotations"]:
            there[note["image_id"]].add(objects.names[names[note["category_id"]]])
        for note in captions["annotations"]:
            if note["image_id"] in there:
                there[note["image_id"]].update(objects.named(note["caption"]))
        paths = {image["id"]: image["file_name"] for image in instances["images"]}
        for number in _chosen(files, list(there)):
            image = image_of(files, paths[number], *COCO_FOLDERS)
            yield Item(str(number), "", (image,), tuple(sorted(there[number])), {"synonyms": synonyms})


def _synonyms(files: Files) -> str:
    """The published list of synonyms if it is there; empty: our own words."""
    return str(files.find(SYNONYMS)) if (files.root() / SYNONYMS).exists() else ""


@cache
def _objects(synonyms: str) -> Objects:
    if not synonyms:
        return Objects.of([[*group, *map(singular, group)] for group in groups()])
    return Objects.of([line.strip().split(", ") for line in lines_of(read_text(Path(synonyms))) if line.strip()])


def _chosen(files: Files, known: Sequence[int]) -> list[int]:
    """The images to describe: those of ``image_ids.txt`` if it is there, else of Karpathy's split, else all.

    Raises DataError: an image without annotations.
    """
    if (files.root() / CHOSEN).exists():
        file = files.find(CHOSEN)
        wanted = [int(word) for word in read_text(file).split()]
    elif files.split == "val2014":
        return list(known)
    else:
        data: Mapping[str, Any] = files.json("dataset_coco.json")
        wanted = [image["cocoid"] for image in data["images"] if image["split"] == files.split]
    strange = set(wanted) - set(known)
    if strange:
        raise DataError(
            f"{files.used[-1]}: {len(strange)} images without annotations, e.g. {min(strange)}",
            fix="give images of instances_val2014.json",
        )
    return wanted


def hallucinated(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """CHAIR-i: share of mentioned objects that are not there; CHAIR-s: share of captions with such a mention."""
    rows = np.asarray([_counts(i, a) for i, a in zip(items, answers, strict=True)], dtype=np.float64)
    names = [item.id for item in items]
    return [
        Metric("chair_i", names, rows[:, :2], "ratio", better="lower"),
        per_item("chair_s", names, rows[:, 0] > 0, better="lower"),
        Metric("recall", names, rows[:, 2:], "ratio"),
    ]


def faithful(items: Sequence[Item], answers: Sequence[str]) -> list[float]:
    """1 for a caption that names nothing that is not there."""
    return [float(not _counts(i, a)[0]) for i, a in zip(items, answers, strict=True)]


def _counts(item: Item, answer: str) -> tuple[int, int, int, int]:
    """Mentions of objects that are not there, of any; objects named that are there, and all that are there."""
    named = _objects(item.fields["synonyms"]).named(answer)
    absent = sum(name not in item.references for name in named)
    return absent, len(named), len(set(named) & set(item.references)), len(item.references)
