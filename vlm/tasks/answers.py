"""Answers to many questions: processes share them, a bad one is marked, an interrupted run goes on where it stopped.

A question is known by a key that follows from its content (see :func:`key_of`), not by its number, so that answers
stay usable when the file of the questions is mended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vlm.common import dist
from vlm.common.errors import DataError, PromptError, UserError
from vlm.common.owned import replace_text, written
from vlm.common.paths import make_folder
from vlm.tasks.in_flight import InFlight

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.inference.engine import Conversation, Engine
    from vlm.inference.generation import Generation

log = logging.getLogger(__name__)

BEGIN = '{"fingerprint": '
"""How a partial answer file begins, as far as it was written."""
Question = Callable[[], "Conversation"]
"""Makes what a model is asked. Raises DataError or PromptError for a question that cannot be asked."""
Q = TypeVar("Q", bound=Hashable)
"""How a caller names a question: its key, or its number."""


class Answer(str):
    """What a model wrote; empty, with the reason in ``error``, if the question could not be asked."""

    error: str

    def __new__(cls, text: str = "", error: str = "") -> Answer:
        """``text`` with the reason in ``error``."""
        self = super().__new__(cls, text)
        self.error = error
        return self


def key_of(*content: Any) -> str:
    """The key of a question: a hash of whatever it consists of (JSON values, messages, bytes, images, arrays)."""
    return _hash(json.dumps(content, default=_plain, sort_keys=True).encode("utf-8", "surrogatepass"))


def distinct(keys: Iterable[str]) -> list[str]:
    """The keys, with the number of the occurrence after every key that occurred before."""
    seen = Counter[str]()
    result = []
    for key in keys:
        result.append(f"{key}-{seen[key]}" if seen[key] else key)
        seen[key] += 1
    return result


def model_key(config: Config | None) -> str:
    """The key of a model by its configuration: its composition, with size and time of change of its weight files."""
    if config is None or config.model is None:
        return ""
    named = [Path(w.path) for w in config.model.weights if w.path]
    files = [f for path in named for f in (sorted(path.iterdir()) if path.is_dir() else [path]) if f.is_file()]
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return key_of(config.resolved.get("model"), stats)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _plain(value: Any) -> Any:
    """The content of a value that JSON cannot hold; a printed form may shorten it or name an address in memory."""
    if isinstance(value, bytes):
        return _hash(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, *(getattr(value, f.name) for f in dataclasses.fields(value))]
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        array = np.asarray(value)
        return [array.shape, str(array.dtype), _hash(array.tobytes())]
    return repr(value)


def answer_all(
    engine: Engine,
    questions: Mapping[str, Question],
    generation: Generation,
    batch_size: int = 16,
    *,
    parts: AnswerParts | None = None,
    edit: Callable[[Sequence[str]], list[str]] = list,
) -> dict[str, Answer]:
    """The answer to each question by its key; call it on all processes, each answers its share and gets all answers.

    Args:
        engine: the model.
        questions: key -> question.
        generation: options of the answers.
        batch_size: questions that are answered at a time; it changes speed and memory, not the answers.
        parts: where answers are kept as they come; those of an interrupted run are not asked again.
        edit: changes texts before they are kept.
    """

    def groups(mine: list[str]) -> Generator[dict[str, Answer], None, None]:
        with closing(_answers(engine, {k: questions[k] for k in mine}, generation, batch_size)) as answered:
            for found in answered:
                good = [k for k, answer in found.items() if not answer.error]
                edited = zip(good, edit([found[k] for k in good]), strict=True)
                yield found | {k: Answer(text) for k, text in edited}

    return share_out({k: k for k in questions}, groups, batch_size, parts)


def share_out(
    keys: Mapping[Q, str],
    groups: Callable[[list[Q]], Generator[dict[Q, Answer], None, None]],
    batch_size: int,
    parts: AnswerParts | None,
) -> dict[Q, Answer]:
    """The answers to all questions; call it on all processes, each answers its share and gets all answers.

    Args:
        keys: question -> its key in ``parts``.
        groups: answers the questions it is given, a few at a time, each with its question.
        batch_size: answers between two lines of the log.
        parts: where answers are kept as they come; those of an interrupted run are not asked again.
    """
    result = {} if parts is None else {q: Answer(parts.done[key]) for q, key in keys.items() if key in parts.done}
    left = [q for q in keys if q not in result]
    mine = left[dist.rank() :: dist.world_size()]
    own: dict[Q, Answer] = {}
    with closing(groups(mine)) as answered:
        for found in answered:
            if parts is not None:
                parts.add({keys[q]: answer for q, answer in found.items() if not answer.error})
            before = len(own)
            own |= found
            if len(own) == len(mine) or len(own) // batch_size > before // batch_size:
                log.info("%d of %d questions of this process answered", len(own), len(mine))
    for part in dist.gather_objects(own):
        result |= part
    if parts is not None:  # the same on all processes, so that they share further questions in the same way
        parts.done |= {keys[q]: str(answer) for q, answer in result.items() if not answer.error}
    return result


def _answers(
    engine: Engine, questions: Mapping[str, Question], generation: Generation, batch_size: int
) -> Generator[dict[str, Answer], None, None]:
    """The answers in groups: as they end, or batch by batch where beams are searched."""
    if generation.num_beams == 1:
        for group in InFlight(engine, generation, batch_size).answers(questions):
            yield {k: Answer("", str(a)) if isinstance(a, UserError) else Answer(a) for k, a in group.items()}
        return
    keys = list(questions)
    for first in range(0, len(keys), batch_size):
        batch = keys[first : first + batch_size]
        yield dict(zip(batch, _ask([questions[k] for k in batch], engine, generation, batch_size), strict=True))


def _ask(questions: Sequence[Question], engine: Engine, generation: Generation, batch_size: int) -> list[Answer]:
    """The answers of one batch, in order."""
    result: dict[int, Answer] = {}
    usable: dict[int, Conversation] = {}
    for k, question in enumerate(questions):
        try:
            usable[k] = question()
        except (DataError, PromptError) as error:
            result[k] = Answer("", str(error))
    answers = _generate(list(usable.values()), engine, generation, batch_size)
    result |= dict(zip(usable, answers, strict=True))
    return [result[k] for k in range(len(questions))]


def _generate(asked: Sequence[Conversation], engine: Engine, generation: Generation, batch_size: int) -> list[Answer]:
    """The answers to conversations; a batch that fails is halved until the faulty ones are found."""
    if not asked:
        return []
    try:
        return [Answer(text) for text in engine.generate(asked, generation, batch_size)]
    except (DataError, PromptError) as error:
        if len(asked) == 1:
            return [Answer("", str(error))]
    halves = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    return [answer for half in halves for answer in _generate(half, engine, generation, batch_size)]


class AnswerParts:
    """The answers of an unfinished run: each process appends to ``PATH.part-RANK`` as it goes.

    Attributes: ``done``, key -> text of an interrupted run and of this one.
    """

    def __init__(self, path: Path, fingerprint: str, *, overwrite: bool = False, replace_strange: bool = False) -> None:
        """Find what an interrupted run left; call it on all processes.

        Args:
            path: the file that the run will write.
            fingerprint: of everything besides the questions that answers depend on.
            overwrite: start again, whatever is there.
            replace_strange: start again, instead of an error, where the answers belong to another run.

        Raises:
            UserError: answers of a run with another fingerprint are there, or a file that is not one of answers.
        """
        self.path = path
        self.done: dict[str, str] = {}
        prepared = self._prepare(fingerprint, overwrite, replace_strange) if dist.is_main() else None
        problem = dist.broadcast_object(prepared)
        if problem:
            raise UserError(problem, fix="name another file, or add --overwrite to start again")
        for part in self.files():
            self.done |= dict(_read(part)[1])
        if self.done:
            log.info("%s: %d answers taken from an interrupted run", path, len(self.done))
        dist.barrier()
        own = self._own()
        kept = _read(own)[1] if own.exists() else ()  # without the last line if it was cut off
        self._head = _line({"fingerprint": fingerprint, "run": token_hex(8)})  # another run's head differs
        with written(own):
            replace_text(own, self._head + "".join(map(_line, kept)))

    def files(self) -> list[Path]:
        """The files of all processes."""
        name = re.compile(rf"{re.escape(self.path.name)}\.part-\d+")
        return sorted(f for f in self.path.parent.iterdir() if name.fullmatch(f.name))

    def add(self, answers: Mapping[str, str]) -> None:
        """Keep answers of this process; they are on disk when this returns.

        Raises UserError: the file cannot be written.
        """
        own = self._own()
        if self._head and _head(own) == self._head:
            with written(own), own.open("a", encoding="utf-8") as file:
                file.writelines(map(_line, answers.items()))
        elif self._head:
            log.warning("%s is no longer ours: another command writes to the same folder", own)
            self._head = ""  # its answers may be another model's: ours are kept in memory alone
        self.done |= {k: str(text) for k, text in answers.items()}

    def remove(self) -> None:
        """Delete the files; the run is finished."""
        for part in self.files():
            part.unlink(missing_ok=True)

    def _own(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part-{dist.rank()}")

    def _prepare(self, fingerprint: str, overwrite: bool, replace_strange: bool) -> str:
        """Make the folder; a message when the answers that are there belong to another run."""
        make_folder(self.path.parent)
        found = {part: _read(part)[0] for part in self.files()}  # before anything is deleted: are they ours?
        if overwrite:
            self.remove()
            return ""
        strange = next((part for part, own in found.items() if own not in (fingerprint, "")), None)
        if strange and replace_strange:
            self.remove()
            return ""
        return f"{strange} was written with another prompt, another model or other options" if strange else ""


def _head(file: Path) -> str:
    """The first line; empty: there is no such file."""
    try:
        with file.open(encoding="utf-8", errors="replace") as content:
            return content.readline()
    except FileNotFoundError:
        return ""


def _line(entry: Any) -> str:
    return json.dumps(entry) + "\n"


def _read(part: Path) -> tuple[str, Iterable[tuple[str, str]]]:
    """Fingerprint (empty where nothing was written yet) and answers; an unfinished last line is left out.

    Raises DataError: the file is not a partial answer file.
    """
    try:
        text = part.read_text(encoding="utf-8")
        if not text.startswith(BEGIN[: len(text)]):
            raise ValueError("it does not begin with a fingerprint")
        whole = text.split("\n")[:-1]
        head = json.loads(whole[0])["fingerprint"] if whole else ""
        return head, [(str(key), str(text)) for key, text in map(json.loads, whole[1:])]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{part} is not a partial answer file written by `vlm` ({error})", fix="delete it and start again"
        ) from None
