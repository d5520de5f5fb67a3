"""``run_generate``: one answer to every record of annotation files, written in their order."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common import dist
from vlm.common.errors import DataError, PromptError
from vlm.common.types import Message, Text
from vlm.datasets.formats.table.read import AllRows, Record
from vlm.datasets.formats.table.templates import fill, names
from vlm.datasets.media_field import check_field, medium_of
from vlm.runners.evaluate.answer_file import AnswerFile

if TYPE_CHECKING:
    from vlm.inference.engine import Conversation, Engine
    from vlm.inference.generation import Generation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to ask about which records."""

    files: Sequence[str]  # annotation files (JSON lines, JSON, CSV, TSV, Parquet), one after the other
    prompt: str = "{question}"  # text with ``{fields}`` of the record
    raw: bool = False  # the prompt is all that the model sees; otherwise it is a question, which its template frames
    media_field: str = ""  # of the image or video, by default image, else video; a record without it is text only
    media_root: str = "."  # folder that relative paths start from
    index_field: str = "index"  # names a record in the result; without it, its number, from 0
    copy: Sequence[str] = ()  # further fields of the record that go into the result
    answer_field: str = ""  # the result is the records with the answer in this field, after the fields of the prompt
    lemmatize: bool = False  # nouns and verbs of the answers become their basic forms

    def medium(self, record: Record) -> Any:
        """The content of the field of the image or video; None where it is missing."""
        names = [self.media_field] if self.media_field else ["image", "video"]
        return next((record[name] for name in names if record.get(name) not in (None, "")), None)


class Records:
    """The records of a request with their prompts, checked as far as is possible without reading media."""

    def __init__(self, request: Request) -> None:
        """Raises DataError: missing files, no records, a field of the prompt that a record lacks, a missing medium."""
        self.request = request
        self.rows = AllRows(request.files)
        if not len(self.rows):
            raise DataError(f"{', '.join(request.files)}: no records", fix="name a file with records")
        self.prompts = []
        for k in range(len(self.rows)):
            record, where = self.rows[k]
            self.prompts.append(fill(request.prompt.strip(), record, where).strip())
            if not self.prompts[-1] and request.medium(record) is None:
                raise DataError(f"{where}: neither a prompt nor an image", fix="give a prompt, e.g. '{question}'")
            check_field(request.medium(record), request.media_root, where)
        if all(request.medium(self.rows[k][0]) is None for k in range(len(self.rows))):
            there = ", ".join(sorted(map(str, self.rows[0][0])))
            log.warning("no record has a field %s (they have %s): text only", request.media_field or "image", there)

    def __len__(self) -> int:
        return len(self.rows)

    def conversation(self, number: int, engine: Engine) -> Conversation:
        """What a model is given for a record.

        Raises:
            DataError, PromptError: its medium cannot be read, or does not fit the prompt; the message names the record.
        """
        record, where = self.rows[number]
        medium = medium_of(self.request.medium(record), self.request.media_root, where)
        media = [medium] if medium is not None else []
        text = self.prompts[number]
        try:
            if self.request.raw:
                return engine.processor.encode_prompt(text, media)
            declared = [Text(text)] if text else []
            return engine.processor.encode_chat([Message("user", (*media, *declared))])
        except (DataError, PromptError) as error:
            raise type(error)(f"{where}: {error}") from error

    def line(self, number: int, answer: str) -> dict[str, Any]:
        """The object of the result: the published ``index`` and ``text_output`` with the copied fields, or the record.

        Raises DataError: a field to copy that the record lacks.
        """
        record, where = self.rows[number]
        if self.request.answer_field:
            return _answered(record, answer, self.request.answer_field, names(self.request.prompt))
        if lacking := [name for name in self.request.copy if name not in record]:
            there = ", ".join(sorted(map(str, record)))
            raise DataError(f"{where}: no field {lacking[0]!r} to copy (it has {there})")
        copied = {name: record[name] for name in self.request.copy}
        return {"index": record.get(self.request.index_field, number), "text_output": answer, **copied}

    def fingerprint(self, *more: Any) -> str:
        """Hash of the request, the records and whatever else the answers depend on."""
        digest = hashlib.sha256(json.dumps([asdict(self.request), *more], default=str, sort_keys=True).encode())
        for k in range(len(self.rows)):
            digest.update(json.dumps(self.rows[k][0], default=str, sort_keys=True).encode())
        return digest.hexdigest()


def run_generate(
    engine: Engine,
    records: Records,
    output: str | Path,
    generation: Generation,
    *,
    batch_size: int = 16,
    overwrite: bool = False,
) -> Path:
    """Answer every record and write the answers, one JSON object per line; processes share the records.

    An interrupted run resumes where it stopped when it is started again with the same request, model and options.

    Args:
        engine: the model.
        records: what to answer.
        output: the file to write.
        generation: the options of an answer.
        batch_size: records that run together; it changes speed and memory, not the answers.
        overwrite: replace what is there.

    Raises:
        UserError: the file exists, an image or video cannot be read, or a prompt does not fit the model.
    """
    basic = lemmatizer() if records.request.lemmatize else None
    resolved = engine.config.resolved if engine.config is not None else {}
    file = AnswerFile(output, records.fingerprint(resolved, asdict(generation)), overwrite=overwrite)
    for k in range(len(records)):
        records.line(k, "")  # a field to copy that is missing is reported before anything is answered
    left = [k for k in range(len(records)) if k not in file.done]
    mine = left[dist.rank() :: dist.world_size()]
    for first in range(0, len(mine), batch_size):
        chunk = mine[first : first + batch_size]
        answers = engine.generate([records.conversation(k, engine) for k in chunk], generation, batch_size)
        file.add(zip(chunk, basic(answers) if basic is not None else answers, strict=True))
        log.info("%d of %d records of this process answered", first + len(chunk), len(mine))
    file.finish(records.line, len(records))
    return file.path


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


def _answered(record: Record, answer: str, field: str, asked: Collection[str]) -> Record:
    """The record with the answer after the last of the fields that were asked, or at its end."""
    kept = [(name, value) for name, value in record.items() if name != field]
    place = max((k for k, (name, _) in enumerate(kept, start=1) if name in asked), default=len(kept))
    return dict([*kept[:place], (field, answer), *kept[place:]])
