"""The limits of ``model.text``, each as a function over the spans of a sample."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlm.common.errors import DataError
from vlm.common.types import MEDIA_TOKEN, Cut

log = logging.getLogger(__name__)


@dataclass
class Span:
    """Token ids that are supervised together or not at all.

    Attributes:
        ids: ``[s]`` ids, with ``MEDIA_TOKEN`` for a whole medium.
        supervised: whether they are targets.
        bos: whether the begin id precedes them (it is not part of ``ids``).
        eos: whether the last of them is the end id.
    """

    ids: list[int]
    supervised: bool = False
    bos: bool = False
    eos: bool = False


def keep_last(spans: Sequence[Span], limit: int, warn: bool = False) -> list[Span]:
    """The last ``limit`` tokens of a prompt (begin ids count) and all its media; 0 means no limit.

    Source: ``max_input_tokens`` of arXiv:2307.02469.
    """
    length = sum(len(span.ids) - span.ids.count(MEDIA_TOKEN) + span.bos for span in spans)
    surplus = length - limit if limit > 0 else 0
    if surplus > 0 and warn:
        log.warning("prompt of %d tokens cut to its last %d (model.text.max_input_len)", length, limit)
    kept = []
    for span in spans if surplus > 0 else ():
        bos = span.bos and surplus <= 0
        surplus -= span.bos
        ids = []
        for i in span.ids:
            if i == MEDIA_TOKEN or surplus <= 0:
                ids.append(i)
            else:
                surplus -= 1
        kept.append(replace(span, ids=ids, bos=bos))
    return kept or list(spans)


def keep_first(spans: Sequence[Span], limit: int, medium: int, *, per_turn: bool, error: DataError) -> list[Span]:
    """The first ``limit`` positions; a span that is cut ends its turn.

    Args:
        spans: of a whole sample, or of what precedes its first answer.
        limit: positions that stay.
        medium: positions that a medium counts.
        per_turn: count from every begin id, which takes a position itself; else over all spans.
        error: raised where a medium would be cut off.
    """
    kept, room = [], limit
    for span in spans:
        if per_turn and span.bos:
            room = limit - 1
        ids: list[int] = []
        for i in span.ids:
            room -= medium if i == MEDIA_TOKEN else 1
            if room >= 0:
                ids.append(i)
            elif i == MEDIA_TOKEN:
                raise error
        kept.append(replace(span, ids=ids))
    return kept


def keep_context(spans: Sequence[Span], limit: int, media: Sequence[int], begin: int) -> list[Span]:
    """The first ``limit`` positions of a whole sample.

    Args:
        spans: of the sample.
        limit: positions that stay.
        media: positions of each medium, in order.
        begin: positions of a begin id.
    """
    kept, room, sizes = [], limit, iter(media)
    for span in spans:
        room -= begin if span.bos else 0
        ids: list[int] = []
        for i in span.ids:
            room -= next(sizes) if i == MEDIA_TOKEN else 1
            if room < 0:
                break
            ids.append(i)
        if room < 0 and not ids:
            break
        kept.append(replace(span, ids=ids))
    return kept


def what_was_cut(whole: Sequence[Span], kept: Sequence[Span], limit: str) -> Cut | None:
    """What ``kept``, the spans that are left of the beginning of ``whole``, lacks; None if it is the same."""
    rest = [*kept, *(Span([]) for _ in whole[len(kept) :])]
    pairs = [(a, b) for a, b in zip(whole, rest, strict=True) if a.ids != b.ids]
    answers = [b for a, b in pairs if a.supervised]
    texts = [a for a, b in pairs if not a.supervised and _words(a) != _words(b)]
    images = sum(a.ids.count(MEDIA_TOKEN) - b.ids.count(MEDIA_TOKEN) for a, b in pairs)
    lost = sum(not b.ids for b in answers)
    return Cut(len(answers) - lost, lost, images, len(texts), limit) if pairs else None


def only_last(whole: Sequence[Span], kept: Sequence[Span]) -> list[Span]:
    """``kept``, what is left of the beginning of ``whole``, with the last answer of ``whole`` alone supervised."""
    last = max((k for k, span in enumerate(whole) if span.supervised), default=-1)
    return [replace(span, supervised=k == last) for k, span in enumerate(kept)]


def _words(span: Span) -> int:
    return len(span.ids) - span.ids.count(MEDIA_TOKEN)


def keep_answers(spans: Sequence[Span], limit: int, end: list[int] | None) -> list[Span]:
    """The first ``limit`` tokens from the first answer on.

    Args:
        spans: the first answer and all that follows it.
        limit: tokens that stay.
        end: ids that end a truncated answer which has no end id of its own; None: a truncated answer has no end,
            as in published code.
    """
    kept, room = [], limit
    for span in spans:
        ids = span.ids
        if len(ids) > room and end is not None:
            last = ids[-1:] if span.eos else end
            ids = [*ids[: max(room - len(last), 0)], *last] if span.supervised else []
        kept.append(replace(span, ids=ids[:room]))
        room -= len(span.ids)
        if room < 0:
            break
    return kept
