"""What is kept of a rated answer: a dialogue in LLaVA's layout, with what is known of the answer beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlm.common.errors import DataError
from vlm.common.types import Image, Message, Part, Text
from vlm.datasets.base import check_text
from vlm.datasets.formats.turns import check_order, read_turns
from vlm.processors.placeholders import Medium, attach_media
from vlm.serve.feedback.folder import LEFT_OUT
from vlm.tasks.answers import model_key

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation

Verdict = Literal["up", "down", "corrected"]

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
UNTRAINED = "a thumb down without a correction"
UNFINISHED = "the answer is not complete"


@dataclass(frozen=True)
class Rating:
    """What a visitor thinks of an answer; ``thumb`` is None once it was taken back.

    Attributes:
        key: id of its record.
        thumb: up (True) or down (False).
        correction: what the answer should have been; empty: not said.
        left_out: why its record is not trained on; empty: it is.
    """

    key: str
    thumb: bool | None
    correction: str = ""
    left_out: str = ""

    @property
    def verdict(self) -> Verdict | None:
        """What is kept of it; None: nothing."""
        if self.correction:
            return "corrected"
        return None if self.thumb is None else ("up" if self.thumb else "down")


def facts_of(name: str, engine: Engine) -> dict[str, Any]:
    """What a record says of the model: its name on the page, its run folders, and a digest.

    The digest is of the composition and of names, sizes and times of change of the weight files.
    """
    weights = [] if engine.config is None else [w for w in engine.config.model.weights if w.path]
    runs = [str(w.path) for w in weights if w.format == "run_folder"]
    return {"model": name, "run": runs, "fingerprint": model_key(engine.config)}


def model_section(engine: Engine) -> dict[str, Any]:
    """The sections of a configuration that describe a model with its weights; empty where none is known."""
    config = engine.config
    if config is None or "model" not in config.resolved:
        return {}
    weights = [{k: v for k, v in dataclasses.asdict(w).items() if v} for w in config.model.weights]
    for weight in weights:
        if Path(weight.get("path", "")).expanduser().exists() and weight.get("path"):
            weight["path"] = str(Path(weight["path"]).expanduser().absolute())
    found = {"model": {**config.resolved["model"], "weights": weights}}
    return {**found, "plugins": list(config.plugins)} if config.plugins else found


def record_of(
    rating: Rating,
    given: Sequence[Message],
    answer: str,
    generation: Generation,
    facts: Mapping[str, Any],
    is_complete: bool = True,
) -> dict[str, Any]:
    """The record of a rated answer, without its media.

    What cannot be trained on has the reason under ``left_out``.

    Args:
        rating: with a verdict.
        given: what the model read, the question last.
        answer: what it wrote.
        generation: how it was written.
        facts: of the model, see :func:`facts_of`.
        is_complete: whether the model ended the answer; else a limit or the visitor did.
    """
    turns = [{"from": SPEAKERS[m.role], "value": _words(m.parts)} for m in given]
    turns.append({"from": "gpt", "value": rating.correction or answer})
    record: dict[str, Any] = {"id": rating.key, "conversations": turns, "verdict": rating.verdict}
    if rating.correction:
        record["answer"] = answer
    media = [medium for m in given for medium in m.media]
    why = {"down": UNTRAINED, "up": "" if is_complete else UNFINISHED}.get(str(rating.verdict), "")
    if why := why or fault_of(turns, media):
        record[LEFT_OUT] = why
    written = {k: v for k, v in dataclasses.asdict(generation).items() if v is not None}
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {**record, **facts, "generation": written, "time": when}


def fault_of(turns: Sequence[Mapping[str, str]], media: Sequence[Medium] = ()) -> str:
    """Why a dialogue cannot be trained on; empty if it can."""
    try:
        spoken = read_turns(turns, "the dialogue")
        check_order(spoken, "the dialogue")
        attach_media(spoken, media, "the dialogue", first=False)
        for _, text in spoken:
            check_text(text, "the dialogue: ")
    except DataError as error:
        return str(error).partition("\n")[0]
    return ""


def _words(parts: Sequence[Part]) -> str:
    """The text of a message with a placeholder for every medium, on lines of their own."""
    pieces: list[str] = []
    for is_text, run in groupby(parts, key=lambda part: isinstance(part, Text)):
        if is_text:
            pieces.append("".join(part.text for part in run if isinstance(part, Text)))
        else:
            pieces += ["<image>" if isinstance(part, Image) else "<video>" for part in run]
    return "\n".join(pieces)
