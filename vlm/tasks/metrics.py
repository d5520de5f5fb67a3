"""Scores of generated answers, as pure functions of records and texts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def exact_match(answer: str, reference: str) -> bool:
    """Whether two texts are equal apart from surrounding white space."""
    return answer.strip() == reference.strip()


def share(flags: Sequence[bool]) -> dict[str, Any]:
    """``{"accuracy", "count"}``; the accuracy is None without flags."""
    return {"accuracy": sum(flags) / len(flags) if flags else None, "count": len(flags)}


def by(
    records: Sequence[Record], flags: Sequence[bool], key: Callable[[Record], Hashable]
) -> dict[str, dict[str, Any]]:
    """Accuracy and count for each value of ``key``, sorted; records whose key is None are left out."""
    groups: dict[Hashable, list[bool]] = defaultdict(list)
    for record, flag in zip(records, flags, strict=True):
        groups[key(record)].append(flag)
    return {str(k): share(groups[k]) for k in sorted((g for g in groups if g is not None), key=str)}


def summarise(records: Sequence[Record], flags: Sequence[bool]) -> dict[str, Any]:
    """Accuracies overall, per question type, per number of objects, and on seen and unseen pairs.

    Args:
        records: may have ``type``, ``objects`` and ``unseen_pair``.
        flags: whether each answer was right.

    Returns:
        ``{"overall", "count", "unseen_pairs", "seen_pairs", "by_type", "by_objects", "counts"}``; accuracies
        are shares of 1, None without such records.
    """

    def on(unseen: bool) -> dict[str, Any]:
        return share([f for r, f in zip(records, flags, strict=True) if r.get("unseen_pair") is unseen])

    pairs = {"seen_pairs": on(False), "unseen_pairs": on(True)}
    types = by(records, flags, lambda r: r.get("type"))
    groups = {"by_type": types, "by_objects": by(records, flags, lambda r: r.get("objects"))}

    def part(name: str) -> dict[str, Any]:
        by_group = {key: {k: v[name] for k, v in values.items()} for key, values in groups.items()}
        return {k: v[name] for k, v in pairs.items()} | by_group

    return {"overall": share(flags)["accuracy"], "count": len(flags), **part("accuracy"), "counts": part("count")}


def mean_of(numbers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean accuracies of several runs over the same records; see :func:`summarise`."""
    flat = ("overall", "seen_pairs", "unseen_pairs")
    result: dict[str, Any] = {k: _mean([n[k] for n in numbers]) for k in flat}
    for group in ("by_type", "by_objects"):
        result[group] = {k: _mean([n[group][k] for n in numbers]) for k in numbers[0][group]}
    return result


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def majority_answers(records: Sequence[Record]) -> dict[str, str]:
    """The most frequent answer of each question type; ties go to the alphabetically first."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        answers[str(record.get("type"))][str(record["answer"]).strip()] += 1
    return {kind: min(counts, key=lambda a: (-counts[a], a)) for kind, counts in sorted(answers.items())}


def majority(records: Sequence[Record]) -> dict[str, Any]:
    """:func:`summarise` of always giving the most frequent answer of the question's type; lists those answers."""
    guess = majority_answers(records)
    flags = [exact_match(guess[str(r.get("type"))], str(r["answer"])) for r in records]
    return {**summarise(records, flags), "answers": guess}
