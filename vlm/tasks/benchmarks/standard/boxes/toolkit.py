"""The files of the refer toolkit, ``refs(unc).p`` and ``instances.json``, as records with one phrase each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlm.common.errors import DataError
from vlm.datasets.base import by_id, records_of
from vlm.datasets.formats.plain_pickle import read_plain_pickle
from vlm.tasks.benchmarks.standard.items import Files


def toolkit_records(files: Files, names: tuple[str, str], splits: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Records ``{"img_id", "sents", "bbox", "height", "width"}`` of each split, in the order of the references.

    Args:
        files: of the benchmark.
        names: of the references and of the instances.
        splits: which references.

    Raises:
        DataError: a file that cannot be read, no such split, or a reference to an object that is not there.
    """
    file = str(files.find(names[0]))
    tree = files.json(names[1])
    boxes = by_id(records_of(tree, names[1], "annotations"), "id")
    images = by_id(records_of(tree, names[1], "images"), "id")
    result: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    for reference in records_of(read_plain_pickle(file, "referring"), file):
        if reference["split"] not in result:
            continue
        if reference["ann_id"] not in boxes or reference["image_id"] not in images:
            raise DataError(
                f"{file}: reference {reference['ref_id']}: {names[1]} has no object {reference['ann_id']}",
                fix="use the files of one release",
            )
        image = images[reference["image_id"]]
        same = {"img_id": reference["file_name"].removesuffix(".jpg"), "bbox": boxes[reference["ann_id"]]["bbox"]}
        same |= {"height": image["height"], "width": image["width"]}
        result[reference["split"]] += [{**same, "sents": sentence["sent"]} for sentence in reference["sentences"]]
    empty = [split for split, records in result.items() if not records]
    if empty:
        raise DataError(f"{file}: no reference of the split {empty[0]!r}", fix="give the file of the papers' split")
    return result
