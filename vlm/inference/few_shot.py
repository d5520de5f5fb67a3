"""Examples for in-context (few-shot) prompting: a JSON Lines file -> the turns before a conversation.

Each line: ``{"image": "a.jpg", "question": "What is it?", "answer": "a boat"}``. ``image`` may be a list, or absent
(a text example); without ``question`` the answer is a caption. Paths start from the file's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError, PromptError
from vlm.common.numbers import JSON_NUMBERS
from vlm.common.text import lines_of, read_text
from vlm.common.types import Image, Message, Video
from vlm.processors.placeholders import attach_media
from vlm.processors.templates.base import IMAGE_PLACEHOLDER

KEYS = ("image", "question", "answer")


def read_examples(path: str | Path) -> list[Message]:
    """The examples of a file as user and assistant messages.

    Raises:
        DataError: no such file, a line that is not a record, a missing or unknown field, a missing image, more
            ``<image>`` than images, or one in an answer.
        PromptError: a question whose number of ``<ImageHere>`` is neither 0 nor that of its images.
    """
    file = Path(path)
    result = [m for where, record in json_lines(file, KEYS) for m in example_of(record, where, file.parent)]
    if not result:
        raise DataError(f"examples {file}: the file is empty", fix="write one {image, question, answer} per line")
    return result


def json_lines(file: Path, fields: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The records of a JSON Lines file of examples, each after the words that name it in errors.

    Raises:
        DataError: no such file, or a line that is not JSON.
    """
    expected = f"{{{', '.join(fields)}}}"
    if not file.is_file():
        raise DataError(f"examples {file}: no such file", fix=f"name a JSON Lines file with {expected}")
    for number, line in enumerate(lines_of(read_text(file, f"examples {file}")), start=1):
        where = f"examples {file}, line {number}"
        try:
            if line.strip():
                yield where, json.loads(line, **JSON_NUMBERS)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON: {error}", fix=f"write one {expected} per line") from error


def example_messages(records: Iterable[Mapping[str, Any]], folder: str | Path = ".") -> list[Message]:
    """Examples from records, e.g. of a dataset; an image may also be a PIL image or bytes.

    Raises DataError, PromptError: as :func:`read_examples`.
    """
    numbered = enumerate(records, start=1)
    return [m for number, record in numbered for m in example_of(record, f"example {number}", Path(folder))]


def example_of(record: Any, where: str, folder: Path) -> list[Message]:
    """Question and answer of one record as messages; ``where`` names it in errors."""
    fix = 'write {"image": "a.jpg", "question": "...", "answer": "..."}'
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: found {type(record).__name__}, expected a mapping", fix=fix)
    if unknown := [key for key in record if key not in KEYS]:
        raise DataError(f"{where}: unknown field {unknown[0]!r} (allowed: {', '.join(KEYS)})", fix=fix)
    answer, question = record.get("answer"), record.get("question", "")
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{where}: no `answer` (it has: {', '.join(record) or 'nothing'})", fix=fix)
    if not isinstance(question, str):
        raise DataError(f"{where}: `question` is {question!r}, expected a string", fix=fix)
    value = record.get("image")
    images = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if not images and not question.strip():
        raise DataError(f"{where}: neither `image` nor `question`", fix=fix)
    media: list[Image | Video] = []
    for image in images:
        path = isinstance(image, str | Path) and folder / image
        if path and not path.is_file():
            raise DataError(f"{where}: image {path}: no such file", fix=f"paths start from {folder or '.'}")
        media.append(Image(str(path) if path else image))
    check_placeholders(question, len(images), where)
    asked = question if question.strip() else ""
    return attach_media([("user", asked), ("assistant", answer)], media, where, first=False)


def check_placeholders(text: str, images: int, where: str) -> None:
    """Raise PromptError unless a text with placeholders has one for each image."""
    placeholders = text.count(IMAGE_PLACEHOLDER)
    if placeholders and placeholders != images:
        raise PromptError(
            f"{where}: {placeholders} image placeholders, but {images} images",
            fix=f"write {IMAGE_PLACEHOLDER} once per image, or leave all placeholders out (the images then come first)",
        )


def prepend_examples(examples: Sequence[Message], messages: Sequence[Message]) -> list[Message]:
    """The examples between a conversation's system message, if it has one, and its turns."""
    system = [m for m in messages[:1] if m.role == "system"]
    return [*system, *examples, *messages[len(system) :]]
