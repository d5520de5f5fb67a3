"""What lmms-eval asks in our terms: messages, options of an answer, losses of given answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vlm.common.errors import ConfigError, DataError, PromptError, unknown
from vlm.common.types import Image, Message, Text, Video

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024
"""Of a task that names no length."""
RENAMED = {"max_gen_toks": "max_new_tokens", "max_tokens": "max_new_tokens", "stop_sequences": "until"}
OURS = ("num_beams", "repetition_penalty", "no_repeat_ngram_size", "length_penalty", "seed")
"""Options with the same name and meaning here."""
OTHERS = ("image_aspect_ratio", "visual_cot")
"""Options of other models' image preparation, which say nothing to ours."""
KNOWN = ("until", "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_p", "top_k", *OURS)
Losses: TypeAlias = "list[tuple[float, bool]] | DataError | PromptError"
"""Of each ending the mean loss of its tokens, and whether greedy decoding writes it; or why it cannot be asked."""


def generation_of(wanted: Mapping[str, Any], engine: Engine) -> Generation:
    """The options of an answer that a task's ``generation_kwargs`` say; what they leave open is greedy and neutral.

    An answer is sampled where ``temperature`` is above 0, or ``do_sample`` is true without a temperature; ``do_sample:
    false`` is greedy whatever else is there. A text of ``until`` ends an answer and is not part of it.

    Raises ConfigError: an option that nobody here knows, or a value outside its range.
    """
    from vlm.inference.generation import Generation

    base = engine.default_generation(Generation(do_sample=False, repetition_penalty=1.0, seed=0))
    given = {RENAMED.get(name, name): value for name, value in wanted.items() if value is not None}
    strange = [name for name in given if name not in (*KNOWN, *OTHERS)]
    if strange:
        raise ConfigError(unknown("option of generation_kwargs", strange[0], [*KNOWN, *OTHERS]))
    if ignored := [name for name in given if name in OTHERS]:
        log.debug("generation_kwargs: %s is about other models", ", ".join(ignored))
    changes: dict[str, Any] = {name: given[name] for name in OURS if name in given}
    changes["max_new_tokens"] = int(given.get("max_new_tokens", MAX_NEW_TOKENS))
    changes |= {"min_length": int(given["min_new_tokens"]) + 1} if "min_new_tokens" in given else {}
    until = given.get("until", ())
    texts = [until] if isinstance(until, str) else list(until)
    changes["stop"] = tuple(dict.fromkeys([*engine.processor.template.stop, *filter(None, texts)]))
    return base.replace(**changes, **_sampling(given))


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    temperature, top_p = given.get("temperature"), float(given.get("top_p", 1.0))
    asked = bool(given.get("do_sample", temperature))
    if not asked or temperature == 0 or top_p == 0:  # as unlikely tokens as that leave the likeliest one
        return {"do_sample": False}
    heat = 1.0 if temperature is None else float(temperature)
    return {"do_sample": True, "temperature": heat, "top_p": top_p, "top_k": int(given.get("top_k", 0))}


def messages_of(content: Sequence[Mapping[str, Any]], folder: Path | None = None) -> list[Message]:
    """lmms-eval's chat messages as ours; relative paths that do not exist are looked for in ``folder``.

    Raises DataError: no message, or a part that is none of text, image and video.
    """
    if not content:
        raise DataError("the task makes no message of this document")
    result = []
    for message in content:
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        result.append(Message(message["role"], [_part(part, folder) for part in parts]))
    return result


def _part(part: Mapping[str, Any], folder: Path | None) -> Text | Image | Video:
    kind = part["type"]
    if kind == "text":
        return Text(part["text"])
    cut = [name for name in ("start_time", "end_time", "video_start", "video_end") if part.get(name) is not None]
    source = part.get("url")
    if cut or isinstance(source, Mapping):
        raise DataError(
            f"a {kind} with {', '.join(cut or map(str, source or ()))}, of which only the whole can be read"
        )
    if kind not in ("image", "video") or source is None:
        raise DataError(f"a part of type {kind}; a model here reads text, images and videos")
    if folder is not None and isinstance(source, str) and not Path(source).exists():
        source = str(folder / source)
    return Image(source) if kind == "image" else Video(source)


def losses(engine: Engine, asked: Sequence[list[Message]], endings: Sequence[Sequence[str]]) -> list[Losses]:
    """The loss of each ending as the answer to each conversation; spaces around an ending are the template's matter.

    A batch that fails is halved until the faulty conversations are found.
    """
    texts = [[ending.strip() for ending in own] for own in endings]
    try:
        return list(_losses(engine, asked, texts))
    except (DataError, PromptError) as error:
        if len(asked) == 1:
            return [error]
    half = len(asked) // 2
    return [*losses(engine, asked[:half], texts[:half]), *losses(engine, asked[half:], texts[half:])]


def _losses(
    engine: Engine, asked: Sequence[list[Message]], endings: Sequence[Sequence[str]]
) -> list[list[tuple[float, bool]]]:
    from vlm.inference.generation import Generation

    ids = [[engine.processor.encode_answer(text, end=False) for text in own] for own in endings]
    longest = max((len(i) for own in ids for i in own), default=0)
    greedy = Generation(do_sample=False, repetition_penalty=1.0, max_new_tokens=max(1, longest))
    written = engine.generate_ids(asked, greedy)
    sums = engine.log_likelihoods(asked, endings)
    return [
        [(-total / max(1, len(i)), row[: len(i)] == i) for total, i in zip(found, own, strict=True)]
        for found, own, row in zip(sums, ids, written, strict=True)
    ]
