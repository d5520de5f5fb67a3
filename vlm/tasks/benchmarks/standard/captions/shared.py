"""What the caption benchmarks share: items from caption files, the metrics, and the form of the result server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.places import nearest
from vlm.tasks.scoring.captions import Compared
from vlm.tasks.scoring.meteor import meteor_rows
from vlm.tasks.scoring.ptb import tokenize
from vlm.tasks.scoring.statistics import Metric, per_item

COCO_FOLDERS = ("val2014", "train2014", "val2017", "images/val2014", "images/val2017")
ONE_SENTENCE = "Provide a one-sentence caption for the provided image."
"""What lmms-eval asks."""


def captioned(name: str, image: Any, captions: Iterable[str], **fields: Any) -> Item:
    """An image to be described; without reference captions (a test split) nothing can be scored here.

    Raises DataError: a caption that is not a text.
    """
    texts = tuple(captions)
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"image {name}: the caption {text!r:.60} is not a text", fix="give the original file")
    return Item(name, "", (image,), texts or None, fields)


def coco_items(data: Mapping[str, Any], files: Files, folders: Sequence[str] = (), **fields: str) -> list[Item]:
    """Items of a file in the layout of COCO's captions: ``images`` and ``annotations``.

    Args:
        data: the file's content.
        files: where images are.
        folders: of the images, tried below the media folder.
        fields: name of an item's field -> key of the image's record.

    Raises DataError: a caption of an image that is not in the file.
    """
    captions: dict[Any, list[str]] = {image["id"]: [] for image in data["images"]}
    for note in data.get("annotations") or ():
        if note["image_id"] not in captions:
            raise DataError(
                f"{files.annotations}: a caption of image {note['image_id']}, which is not among the images"
            )
        captions[note["image_id"]].append(note["caption"])
    return [
        captioned(
            str(image["id"]),
            image_of(files, image["file_name"], *folders),
            captions[image["id"]],
            **{field: image[key] for field, key in fields.items() if key in image},
        )
        for image in data["images"]
    ]


def karpathy(data: Mapping[str, Any], files: Files, key: str = "", folders: Sequence[str] = ()) -> list[Item]:
    """Images of a split of a ``dataset_*.json`` of Karpathy and Fei-Fei, named by ``key`` or by their files.

    Raises DataError: it has no image of the split.
    """
    found = [image for image in data["images"] if image["split"] == files.split]
    if not found:
        splits = ", ".join(sorted({image["split"] for image in data["images"]}))
        raise DataError(f"{files.annotations}: no image of split {files.split}", fix=f"it has {splits}")
    return [
        captioned(
            str(image[key]) if key else Path(image["filename"]).stem,
            image_of(files, image["filename"], image.get("filepath", ""), *folders),
            [sentence["raw"] for sentence in image["sentences"]],
            karpathy=True,
        )
        for image in found
    ]


def image_of(files: Files, name: str, *folders: str) -> Any:
    """The image with this name: in the media folder, or in the first of some folders below it that has it."""
    return files.image(nearest(files, name, folders))


def caption_scores(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """CIDEr-D, BLEU-1 to 4 and ROUGE-L as ``pycocoevalcap`` computes them; none without reference captions."""
    if not all(item.references for item in items):
        return []
    names = [item.id for item in items]
    compared = compare(items, answers)
    bleu = compared.bleu()
    return [
        per_item("cider", names, compared.cider(), unit="number"),
        *(Metric(f"bleu_{n}", names, bleu, f"bleu_{n}") for n in (4, 3, 2, 1)),
        per_item("rouge_l", names, compared.rouge()),
    ]


def compare(items: Sequence[Item], answers: Sequence[str]) -> Compared:
    """Tokens of the answers against those of the references, both read in the order of the items."""
    references = tokenize([caption for item in items for caption in item.references])
    following = iter(references)
    return Compared(tokenize(answers), [[next(following) for _ in item.references] for item in items])


def result_file(items: Sequence[Item], outputs: Sequence[Answer]) -> tuple[str, str]:
    """``captions_results.json`` as the COCO caption server takes it; an image without an answer is left out."""
    pairs = zip(items, outputs, strict=True)
    rows = [{"image_id": _number(i.id), "caption": str(o).strip()} for i, o in pairs if not o.error]
    return "captions_results.json", json.dumps(rows, ensure_ascii=False)


def _number(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


def meteor_score(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """METEOR 1.5 with its exact and stem modules only; none without reference captions."""
    if not all(item.references for item in items):
        return []
    compared = compare(items, answers)
    rows = meteor_rows(compared.candidates, compared.references)
    return [Metric("meteor_exact_stem", [item.id for item in items], rows, "meteor")]
