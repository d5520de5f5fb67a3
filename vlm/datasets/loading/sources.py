"""The datasets of a run with their options, and the sample that training sees of a record."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from vlm.common.errors import ConfigError, printable
from vlm.common.registry import resolve
from vlm.common.types import Sample
from vlm.datasets.base import Clean, process_text, read_record, text_roles
from vlm.datasets.loading.media_check import check_media
from vlm.datasets.loading.mixing import derive_seed
from vlm.datasets.loading.sampler import Ref
from vlm.processors.processor import Processor

if TYPE_CHECKING:
    from vlm.config.api import DatasetEntry


@dataclass
class Source:
    """A dataset of a run."""

    name: str  # of the corpus
    dataset: Any
    batch_size: int = 1  # samples of a batch of one process
    ratio: float = 1.0  # weight in the mixture
    text: Clean | None = None  # text processor
    group: str = ""  # the group it belongs to, with ``mixing: joint``
    text_only: bool = False  # its samples must not have media


@dataclass(frozen=True)
class BadRecord:
    """A record that could not be used."""

    source: str
    key: str
    reason: str

    def __post_init__(self) -> None:
        """The key may be a name that is not UTF-8, e.g. of a member of a tar."""
        object.__setattr__(self, "key", printable(self.key))

    def line(self) -> str:
        """Its line of ``quarantine.jsonl``."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


def build_sources(entries: Mapping[str, DatasetEntry], processor: Processor, split: str = "train") -> list[Source]:
    """The datasets of a configuration section with their text processors (of ``split``, else of ``train``).

    Raises:
        ConfigError: an image size other than the model's, a batch size below 1, a negative ratio.
        DataError: files are missing or malformed, or promised images are missing (see :func:`check_media`).
    """
    return [build_source(name, entry, processor.image.config.size, split) for name, entry in entries.items()]


def build_source(name: str, entry: DatasetEntry, image_size: int, split: str = "train") -> Source:
    """One dataset of a configuration with its text processor. Raises as :func:`build_sources`."""
    expected = entry.vis_processor.get(split, {}).get("image_size")
    if expected is not None and expected != image_size:
        raise ConfigError(
            f"datasets.{name}.vis_processor.{split}.image_size is {expected}, "
            f"but the model takes images of {image_size}",
            fix="set both to the same size",
        )
    ratio = 1.0 if entry.sample_ratio is None else float(entry.sample_ratio)
    if entry.batch_size < 1 or ratio < 0:
        raise ConfigError(
            f"datasets.{name}: found batch_size {entry.batch_size} and sample_ratio {ratio}, "
            "expected a batch_size >= 1 and a sample_ratio >= 0",
            fix="set sample_ratio to 0 to leave a dataset out",
        )
    options = dict(entry.text_processor.get(split) or entry.text_processor.get("train") or {})
    text = None
    if options:
        kind = resolve("processor", options.pop("name", "blip_caption"))
        text = kind(kind.Config(**options))
    dataset = resolve("dataset", entry.format.name)(entry.format.config)
    if hasattr(dataset, "clean"):
        dataset.clean = text
    check_media(name, entry, dataset)
    return Source(name, dataset, entry.batch_size, ratio, text, entry.group, entry.data_type == "text")


def read_sample(source: Source, ref: Ref, seed: int) -> Sample:
    """The sample that training sees at ``ref``: random choices made, named, texts through the text processor.

    Raises DataError: the record cannot be used.
    """
    rng = random.Random(derive_seed(seed, "draw", source.name, ref.epoch, ref.index))
    sample = read_record(source.dataset, ref.index, ref.raw, rng)
    sample = replace(sample, source=source.name, id=sample.id or str(ref.index))
    roles = text_roles(source.dataset)
    return process_text(sample, source.text, roles) if source.text is not None and roles else sample
