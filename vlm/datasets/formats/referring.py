"""Referring expressions on COCO images: RefCOCO, RefCOCO+ and RefCOCOg, in both directions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm.common.bounds import NonNegative
from vlm.common.errors import DataError
from vlm.common.registry import register_dataset
from vlm.common.types import Image, Message, Sample
from vlm.datasets.base import Clean, by_id, field, message, read_json, records_of
from vlm.datasets.formats.boxes import box_text, corners_of, image_size
from vlm.datasets.formats.plain_pickle import read_plain_pickle
from vlm.datasets.formats.table.templates import read_pool

Direction = Literal["refer", "identify"]


class BoxDialogues:
    """A format of phrases and boxes: a question about one, with the other as its answer.

    Its ``config`` has ``direction``, ``pool`` and ``slack``. One line of the pool is drawn at each access.
    """

    clean: Clean | None = None  # text processor, set by the loader

    def __init__(self, config: Any) -> None:
        """Reads the pool. Raises DataError unless every line has one ``{}``."""
        self.config = config
        self._pool = read_pool(config.pool or f"{config.direction}.txt", config.direction)
        for line in self._pool:
            if line.count("{}") != 1:
                raise DataError(
                    f"pools.{config.direction}: {line!r} needs exactly one {{}}",
                    fix="write {} where the phrase or box goes",
                )

    def __getitem__(self, index: int) -> Sample:
        return self.draw(index, None)

    def draw(self, index: int, rng: random.Random | None) -> Sample:
        """The sample with its choices drawn from ``rng``; None: the first of each. Raises DataError."""
        raise NotImplementedError

    def _messages(
        self, image: Path, phrase: Any, box: Any, size: tuple[float, float], question: str, where: str
    ) -> tuple[Message, ...]:
        """Question and answer about a phrase and its box. Raises DataError: a wrong box, or an empty phrase."""
        text = box_text(corners_of(box, size, where, self.config.slack), size)
        cleaned = phrase if not isinstance(phrase, str) or self.clean is None else self.clean(phrase)
        if not isinstance(cleaned, str) or not cleaned.strip():
            raise DataError(f"{where}: the phrase is {cleaned!r}", fix="remove the record")
        asked, answer = (cleaned, text) if self.config.direction == "refer" else (text, cleaned)
        return message("user", Image(str(image)), question.replace("{}", asked)), message("assistant", answer)


def choice(options: list[Any], rng: random.Random | None) -> Any:
    """One of the options; the first without ``rng``."""
    return options[0] if rng is None else rng.choice(options)


@register_dataset("referring")
class Referring(BoxDialogues):
    """``ann_path/DATASET/refs(SPLITBY).p`` and ``ann_path/DATASET/instances.json``.

    Raw records (one reference; the object's box; its image)::

        {"ref_id": 7, "ann_id": 1719310, "image_id": 581857, "split": "train",
         "sentences": [{"raw": "the lady with the blue shirt"}, {"raw": "lady at left"}]}
        {"id": 1719310, "image_id": 581857, "bbox": [103.9, 299.9, 134.2, 71.1]}
        {"id": 581857, "width": 640, "height": 427}

    Messages (``direction: refer``, and ``identify``, the inverse)::

        user:      [Image(image_path/COCO_train2014_000000581857.jpg)] [refer] where is the lady with the blue shirt ?
        assistant: {<16><70><37><86>}

        user:      [Image(...)] [identify] what is at {<16><70><37><86>}
        assistant: the lady with the blue shirt

    One of the sentences and one line of the pool are drawn at each access.
    """

    @dataclass
    class Config:
        """Where the files are, and which references."""

        ann_path: str  # folder that holds refcoco/, refcoco+/, refcocog/
        image_path: str
        dataset: Literal["refcoco", "refcoco+", "refcocog"] = "refcoco"
        splitBy: str = "unc"  # whose split: unc, google or umd
        split: str = "train"
        direction: Direction = "refer"
        pool: str | list[str] = ""  # texts with one {}; empty: the shipped pool of the direction
        image_pattern: str = "COCO_train2014_{image_id:012d}.jpg"
        slack: NonNegative = 1.0  # pixels by which a box may leave the image; it is clipped

    def __init__(self, config: Config) -> None:
        """Reads both files. Raises DataError: missing, refused or malformed, or an unknown split."""
        super().__init__(config)
        folder = Path(config.ann_path) / config.dataset
        self._file = str(folder / f"refs({config.splitBy}).p")
        if folder.is_dir() and not Path(self._file).is_file():
            result = ", ".join(sorted(p.name for p in folder.glob("refs(*).p"))) or "none"
            raise DataError(
                f"referring: no file {self._file} (reference files there: {result})", fix="set build_info.splitBy"
            )
        refs = records_of(read_plain_pickle(self._file, "referring"), self._file)
        splits = sorted({str(r.get("split")) for r in refs})
        self._refs = [r for r in refs if r.get("split") == config.split]
        if not self._refs:
            raise DataError(
                f"referring: {self._file} has no split {config.split!r}", fix=f"set split to one of {', '.join(splits)}"
            )
        instances = folder / "instances.json"
        tree = read_json(instances, "referring")
        boxes = by_id(records_of(tree, str(instances), "annotations"), "id")
        self._boxes = {key: record.get("bbox") for key, record in boxes.items()}
        self._images = by_id(records_of(tree, str(instances), "images"), "id")

    def __len__(self) -> int:
        return len(self._refs)

    def draw(self, index: int, rng: random.Random | None) -> Sample:
        """One of the sentences and one of the questions. Raises DataError."""
        ref = self._refs[index]
        where = f"{self._file}: reference {ref.get('ref_id', index)}"
        declared = field(ref, "sentences", where)
        if not isinstance(declared, list) or not declared:
            raise DataError(f"{where}: sentences must be a list with at least one entry, found {declared!r}")
        sentence, question = choice(declared, rng), choice(self._pool, rng)
        image_id, note = field(ref, "image_id", where), field(ref, "ann_id", where)
        for key, known, what in ((image_id, self._images, "images"), (note, self._boxes, "annotations")):
            if key not in known:
                raise DataError(
                    f"{where}: instances.json has no entry {key!r} under {what}", fix="use the files of one release"
                )
        size = image_size(self._images[image_id], f"{where}: image {image_id}")
        image = Path(self.config.image_path) / self._name(image_id, where)
        messages = self._messages(image, field(sentence, "raw", where), self._boxes[note], size, question, where)
        return Sample(messages=messages, id=str(ref.get("ref_id", index)))

    def _name(self, image_id: Any, where: str) -> str:
        try:
            return self.config.image_pattern.format(image_id=image_id)
        except (ValueError, KeyError, IndexError) as error:
            raise DataError(
                f"{where}: image_id {image_id!r} does not fit image_pattern {self.config.image_pattern!r} ({error})",
                fix="correct build_info.image_pattern",
            ) from None
