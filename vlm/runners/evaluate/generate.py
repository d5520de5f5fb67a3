"""``run_generate``: one answer to every record of annotation files, written in their order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError, PromptError
from vlm.datasets.base import check_text
from vlm.datasets.formats.table.read import AllRows, Record
from vlm.datasets.formats.table.shards import ShardImage
from vlm.datasets.formats.table.templates import fill_question, names
from vlm.datasets.loading.quarantine import SHOWN_RECORDS, too_many
from vlm.datasets.media_field import check_field, media_fields, media_of
from vlm.processors.placeholders import attach_media
from vlm.runners.evaluate.answer_file import AnswerFile
from vlm.tasks.answers import Answer, answer_all, distinct, key_of, model_key

if TYPE_CHECKING:
    from vlm.inference.engine import Conversation, Engine
    from vlm.inference.generation import Generation

log = logging.getLogger(__name__)

MAX_BAD_SHARE = 0.5
"""Share of unusable records above which nothing is written; every one of them is marked and counted anyway."""


@dataclass(frozen=True)
class Request:
    """What to ask about which records."""

    files: Sequence[str]  # annotation files (JSON lines, JSON, CSV, TSV, Parquet, tar shards), one after the other
    prompt: str = "{question}"  # text with ``{fields}`` of the record
    raw: bool = False  # the prompt is all that the model sees; otherwise it is a question, which its template frames
    media_field: str = ""  # column of the images or videos; by default the known ones; a record without is text only
    media_root: str = "."  # folder that relative paths start from
    index_field: str = "index"  # names a record in the result; without it, its number, from 0
    copy: Sequence[str] = ()  # further fields of the record that go into the result
    answer_field: str = ""  # the result is the records with the answer in this field, after the fields of the prompt
    lemmatize: bool = False  # nouns and verbs of the answers become their basic forms

    def has_media(self, record: Record) -> bool:
        """Whether a record has an image or video."""
        return bool(media_fields(record, self.media_field))


class Span:
    """Consecutive records of one file, as a list like :class:`AllRows`.

    Attributes: ``number``, of the first of them among the records of all files.
    """

    def __init__(self, rows: AllRows, start: int, count: int, number: int) -> None:
        self._rows, self._start, self._count, self.number = rows, start, count, number

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Record, str]:
        """Raises DataError for a record that could not be read."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._rows[self._start + index]


def check_faults(bad: int, count: int, limit: float, shown: Sequence[str]) -> None:
    """Raises DataError: all of ``count`` records are unusable, or a larger share than ``limit``; ``shown``: why."""
    if bad and (bad == count or too_many(bad, count, limit)):
        if bad == count == 1:
            raise DataError(shown[0])
        raise DataError(
            f"{bad} of {count} records cannot be used, allowed are {limit:.0%}:"
            + "".join(f"\n  - {text}" for text in shown),
            fix="mend them and run the same command again (no answer is lost), or raise --max-bad-share",
        )


class Records:
    """The records of a request with their prompts, checked as far as is possible without reading media.

    Attributes: ``faults``, number of a record -> why it cannot be used.
    """

    def __init__(self, request: Request, max_bad_share: float = MAX_BAD_SHARE, span: Span | None = None) -> None:
        """``span``: these records only, however many of them are unusable; by default those of ``request.files``.

        Raises DataError: missing files, no records, too many unusable ones, no record with a field to copy.
        """
        self.request, self.max_bad_share = request, max_bad_share
        self.rows: Sequence[tuple[Record, str]] = AllRows(request.files) if span is None else span  # type: ignore[assignment]
        self.first = 0 if span is None else span.number
        if not len(self.rows):
            raise DataError(f"{', '.join(request.files)}: no records", fix="name a file with records")
        self.faults: dict[int, str] = {}
        self.prompts = [self._prompt(k) for k in range(len(self.rows))]
        if span is None:
            self.check(self.faults)
            self.check_fields()

    def check_fields(self) -> None:
        """Warn if no record has an image. Raises DataError: none has a field to copy."""
        usable = [self.rows[k][0] for k in range(len(self.rows)) if k not in self.faults]
        there = ", ".join(sorted({str(name) for record in usable[:100] for name in record}))
        if not any(map(self.request.has_media, usable)):
            log.warning(
                "no record has a field %s (they have %s): text only", self.request.media_field or "image", there
            )
        if lacking := [name for name in self.request.copy if not any(name in record for record in usable)]:
            raise DataError(f"{self.rows[0][1]}: no field {lacking[0]!r} to copy (records have {there})")

    def __len__(self) -> int:
        return len(self.rows)

    def _prompt(self, number: int) -> str:
        """The text of a record's question; empty, with an entry in ``faults``, where it cannot be used."""
        try:
            record, where = self.rows[number]
            prompt = fill_question(self.request.prompt.strip(), record, where).strip()
            if not prompt and not self.request.has_media(record):
                raise DataError(f"{where}: neither a prompt nor an image", fix="give a prompt, e.g. '{question}'")
            check_text(prompt, f"{where}: ")
            for _, value in media_fields(record, self.request.media_field):
                check_field(value, self.request.media_root, where)
        except DataError as error:
            self.faults[number] = str(error)
            return ""
        return prompt

    def check(self, faults: Mapping[Any, str]) -> None:
        """Raises DataError: all records are unusable, or more than the limit allows."""
        check_faults(len(faults), len(self), self.max_bad_share, list(faults.values())[:SHOWN_RECORDS])

    def keys(self) -> dict[int, str]:
        """Number -> what the answer is known by, a hash of the content, of every usable record."""
        usable = [k for k in range(len(self)) if k not in self.faults]
        return dict(zip(usable, distinct(key_of(self.rows[k][0], self.prompts[k]) for k in usable), strict=True))

    def conversation(self, number: int, engine: Engine) -> Conversation:
        """What a model is given for a record.

        Raises:
            DataError, PromptError: its medium cannot be read, or does not fit the prompt; the message names the record.
        """
        record, where = self.rows[number]
        media = media_of(record, self.request.media_field, self.request.media_root, where)
        text = self.prompts[number]
        try:
            if self.request.raw:
                return engine.processor.encode_prompt(text, media)
            return engine.processor.encode_chat(attach_media([("user", text)], media, "the question", first=False))
        except (DataError, PromptError) as error:
            raise type(error)(f"{where}: {error}") from error

    def line(self, number: int, answer: Answer) -> dict[str, Any]:
        """The object of the result: the published ``index`` and ``text_output`` with the copied fields, or the record.

        A record without an answer has ``null`` in its place, and the reason in ``error``.
        """
        try:
            record = {k: v for k, v in self.rows[number][0].items() if not isinstance(v, ShardImage)}
        except DataError:
            record = {}
        text, error = (None, {"error": answer.error}) if answer.error else (str(answer), {})
        if self.request.answer_field:
            return {**_answered(record, text, self.request.answer_field, names(self.request.prompt)), **error}
        copied = {name: record[name] for name in self.request.copy if name in record}
        return {
            "index": record.get(self.request.index_field, self.first + number),
            "text_output": text,
            **copied,
            **error,
        }

    def fingerprint(self, *more: Any) -> str:
        """See :meth:`fingerprint_of`."""
        return self.fingerprint_of(self.request, *more)

    @staticmethod
    def fingerprint_of(asked: Request, *more: Any) -> str:
        """Hash of a request, apart from its files, and of whatever else the answers depend on."""
        request = {k: v for k, v in asdict(asked).items() if k not in ("files", "copy", "answer_field")}
        return key_of(request, *more)


def run_generate(
    engine: Engine,
    records: Records,
    output: str | Path,
    generation: Generation,
    *,
    batch_size: int = 16,
    overwrite: bool = False,
) -> dict[int, str]:
    """Answer every record and write the answers, one JSON object per line; processes share the records.

    A record that cannot be used is marked in the result. An interrupted run, and one with such records, goes on when it
    is started again with the same prompt, model and options; the records may have been mended.

    Args:
        engine: the model.
        records: what to answer.
        output: the file to write.
        generation: the options of an answer.
        batch_size: records that run together; it changes speed and memory, not the answers.
        overwrite: replace what is there.

    Returns:
        Number -> reason of every record that could not be used.

    Raises:
        UserError: the file exists, or more records than the limit allows could not be used.
    """
    edit = lemmatizer() if records.request.lemmatize else list
    file = AnswerFile(output, records.fingerprint(model_key(engine.config), asdict(generation)), overwrite=overwrite)
    keys = records.keys()
    asked = {key: partial(records.conversation, k, engine) for k, key in keys.items()}
    found = answer_all(engine, asked, generation, batch_size, parts=file.parts, edit=edit)
    answers = {k: found[keys[k]] if k in keys else Answer("", records.faults[k]) for k in range(len(records))}
    faults = {k: answer.error for k, answer in answers.items() if answer.error}
    records.check(faults)
    file.write([records.line(k, answer) for k, answer in answers.items()], finished=not faults)
    return faults


def lemmatizer() -> Callable[[Sequence[str]], list[str]]:
    """A function that reduces nouns and verbs to their basic form, by spaCy's small English model; spaces join tokens.

    Raises DataError: spaCy or its model is not installed.
    """
    try:
        import spacy

        model = spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise DataError(
            f"apply_lemmatizer needs spaCy and its English model ({error})",
            fix="pip install spacy && python -m spacy download en_core_web_sm, or set it to false",
        ) from None

    def basic(texts: Sequence[str]) -> list[str]:
        kinds = ("NOUN", "VERB")
        return [" ".join(t.lemma_ if t.pos_ in kinds else t.text for t in doc) for doc in model.pipe(texts)]

    return basic


def _answered(record: Record, answer: str | None, field: str, asked: Collection[str]) -> Record:
    """The record with the answer after the last of the fields that were asked, or at its end."""
    kept = [(name, value) for name, value in record.items() if name != field]
    place = max((k for k, (name, _) in enumerate(kept, start=1) if name in asked), default=len(kept))
    return dict([*kept[:place], (field, answer), *kept[place:]])
