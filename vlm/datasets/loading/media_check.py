"""Whether a dataset yields the images that its configuration promises, looked at before anything is trained on.

A dataset promises images or videos where ``image_path``, ``image_pattern``, ``video_pattern`` or ``fields`` speaks of
them, where ``data_type`` is stated and is not ``text``, or where a column holds files of images.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError, UserError
from vlm.datasets.base import StreamDataset, read_record
from vlm.datasets.media_columns import looks_like_media

if TYPE_CHECKING:
    from vlm.config.api import DatasetEntry

log = logging.getLogger(__name__)

LOOKED_AT = 50
"""Records that are looked at, evenly spread over the dataset."""

SEARCHED = 20_000
"""Records that are searched for a medium if those have none: some mixtures hold few images."""


def check_media(name: str, entry: DatasetEntry, dataset: Any) -> None:
    """Look at some records of a map-style dataset; no file of an image is opened.

    Warns if some of them lack images that other columns seem to hold.

    Raises DataError: images are promised, or are in a column that nothing names, and no record yields one.
    """
    if entry.data_type == "text" or isinstance(dataset, StreamDataset) or not hasattr(dataset, "record"):
        return
    size = len(dataset)
    looked = range(0, size, max(size // LOOKED_AT, 1))
    counts = {index: _media(dataset, index) for index in looked}
    bare = [index for index, count in counts.items() if count == 0]
    if not bare:
        return
    likely = _likely_columns(dataset, bare)
    if any(counts.values()):
        if likely:
            shown = f"{len(bare)} of {len(looked)} records looked at"
            log.warning("dataset %s: %s have no image or video, but files in %s", name, shown, ", ".join(likely))
        return
    promise = _promise(entry)
    if not (promise or likely) or any(_media(dataset, k) for k in range(0, size, max(size // SEARCHED, 1))):
        return
    there = ", ".join(sorted(str(column) for column in dataset.record(bare[0]) if column != "file"))
    column = likely[0] if likely else "COLUMN"
    why = f"but {promise} is set" if promise else f"but the column {likely[0]} seems to hold files"
    raise DataError(
        f"dataset {name}: no record has an image or video, {why}; the columns are {there}",
        fix=f"name the column: datasets.{name}.build_info.fields={{image: {column}}} (a name made of other columns: "
        "image_pattern: '{imageId}.jpg'); for texts only, set data_type: text",
    )


def _media(dataset: Any, index: int) -> int | None:
    """Number of media of a record; None if it cannot be used."""
    try:
        return sum(len(message.media) for message in read_record(dataset, index).messages)
    except UserError:  # counted where it is read
        return None


def _likely_columns(dataset: Any, indices: list[int]) -> list[str]:
    """Columns with files of images or videos in at least half of the records."""
    found = Counter(str(k) for i in indices for k, v in dataset.record(i).items() if looks_like_media(v))
    return [column for column, count in found.most_common() if 2 * count >= len(indices) and column != "file"]


def _promise(entry: DatasetEntry) -> str:
    """The option that promises images; empty if none does."""
    config = entry.format.config
    options = {f"build_info.{key}": vars(config).get(key) for key in ("image_path", "image_pattern", "video_pattern")}
    fields = vars(config).get("fields") or {}
    options |= {f"build_info.fields.{key}": fields.get(key) for key in ("image", "video")}
    options["data_type"] = entry.data_type
    return next((f"{key}: {value}" for key, value in options.items() if value), "")
