"""``compare_runs``: two evaluations over the same questions, number by number and question by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vlm.common.errors import DataError, printable
from vlm.runners.evaluate.results.stored_run import Place, StoredRun
from vlm.tasks.benchmarks.base import Score
from vlm.tasks.scoring.statistics import Difference, Metric, difference

SIGNIFICANT = 0.05
"""Largest p at which runs are said to differ."""
MOST_GROUPS = 60
SHORT = 12
"""Digits of a hash in messages."""


@dataclass(frozen=True)
class Compared:
    """One number of two runs.

    Attributes:
        label: name of the metric, or of the group of questions.
        count: units that it is made of.
        found: the numbers, the interval of their difference and p.
        unit: as of a :class:`~vlm.tasks.scoring.statistics.Metric`.
        verdict: what p says, in a sentence.
        winner: ``a``, ``b``, or empty where no difference is shown or none is better.
    """

    label: str
    count: int
    found: Difference
    unit: str
    verdict: str
    winner: str

    def text(self, value: float, signed: bool = False) -> str:
        """A number as people read it; a ``signed`` one is a difference, of shares in points."""
        return (difference_text if signed else _score_text)(value, self.unit)


@dataclass
class Comparison:
    """Two runs on one dataset with one image control.

    Attributes:
        dataset, image: which.
        facts: benchmark, protocol, split and data of both.
        metrics: the primary one first.
        groups: the primary metric by group of questions, where they were shown the right images.
        won, lost: ids of questions on which the second run is better, and worse, most changed first; by the first
            metric that is a mean over questions, else by the scores in the answers files.
        same: number of the others.
        notes: what could not be compared.
    """

    dataset: str
    image: str
    facts: Mapping[str, str]
    metrics: list[Compared]
    groups: list[Compared]
    won: list[str]
    lost: list[str]
    same: int
    notes: list[str] = field(default_factory=list)

    def stored(self) -> dict[str, Any]:
        """As JSON-ready data."""
        numbers = {
            kind: [_stored(c) for c in found] for kind, found in (("metrics", self.metrics), ("groups", self.groups))
        }
        whose = {"dataset": self.dataset, "image": self.image, **self.facts}
        return {**whose, **numbers, "won": self.won, "lost": self.lost, "same": self.same, "notes": self.notes}


def compare_runs(a: StoredRun, b: StoredRun, datasets: Sequence[str] = ()) -> list[Comparison]:
    """Everything that both runs have, in the order of the first.

    Args:
        a, b: the runs.
        datasets: only these; by default all.

    Raises:
        DataError: they share nothing, or scored other questions, other data or by another protocol.
    """
    wanted = [place for place in a.metrics if not datasets or place[0] in datasets]
    shared = [place for place in wanted if place in b.metrics]
    if not shared:
        raise DataError(
            f"the runs have no dataset in common ({a.name}: {_listed(a)}; {b.name}: {_listed(b)})",
            fix="evaluate both on the same dataset with the same image control",
        )
    for place in shared:
        _check(a, b, place)
    return [_compared(a, b, place) for place in shared]


def _listed(run: StoredRun) -> str:
    return ", ".join(f"{dataset} ({image} image)" for dataset, image in run.metrics)


def _check(a: StoredRun, b: StoredRun, place: Place) -> None:
    """Raises DataError: the numbers do not mean the same."""
    one, two = a.facts[place], b.facts[place]
    for key in ("benchmark", "protocol", "split", "data"):
        if one[key] != two[key] and (key != "data" or (one[key] and two[key])):
            first, second = (value[:SHORT] if key == "data" else value or "none" for value in (one[key], two[key]))
            what = "hash of the data" if key == "data" else key
            raise DataError(
                f"{place[0]}: the {what} is {first} in {a.name} and {second} in {b.name}",
                fix="compare numbers of one protocol over one file: evaluate, or score the answers, again",
            )
    mine, theirs = a.answers.get(place, {}), b.answers.get(place, {})
    for key, row in mine.items():
        other = theirs.get(key)
        asked = row.get("question"), (other or {}).get("question")
        if all(asked) and asked[0] != asked[1]:
            raise DataError(
                f"{place[0]}: question {key} is {asked[0]!r:.80} in {a.name} and {asked[1]!r:.80} in {b.name}",
                fix="compare runs over the same questions",
            )


def _compared(a: StoredRun, b: StoredRun, place: Place) -> Comparison:
    theirs = {metric.label: metric for metric in b.metrics[place]}
    pairs = [(metric, theirs[metric.label]) for metric in a.metrics[place] if metric.label in theirs]
    if not pairs:
        raise DataError(f"{place[0]}: {a.name} and {b.name} share no metric", fix="evaluate both with one version")
    notes = [f"{m.label} is only in {a.name}" for m in a.metrics[place] if m.label not in theirs]
    known = {metric.label for metric, _ in pairs}
    notes += [f"{m.label} is only in {b.name}" for m in b.metrics[place] if m.label not in known]
    seeds = [(run.name, run.facts[place]["runs"]) for run in (a, b) if run.facts[place]["runs"] not in ("", "1")]
    notes += [
        f"{name} has {runs} runs with seeds: their mean, or the first where a mean has none" for name, runs in seeds
    ]
    metrics = [_judged(m.label, m, other, a.name, b.name) for m, other in pairs]
    by_unit = next(((m, c.found.changed) for (m, _), c in zip(pairs, metrics) if c.found.changed and m.better), None)
    changed = by_unit[1] if by_unit else _by_question(a.answers.get(place, {}), b.answers.get(place, {}))
    sign = -1 if by_unit and by_unit[0].better == "lower" else 1
    order = sorted(changed, key=lambda unit: -abs(changed[unit]))
    won, lost = ([unit for unit in order if way * sign * changed[unit] > 1e-9] for way in (1, -1))
    facts = {k: v for k, v in a.facts[place].items() if k != "runs"}
    same = len(changed) - len(won) - len(lost)
    groups = _groups(*pairs[0], a.name, b.name) if place[1] in ("", "right") else []
    return Comparison(*place, facts, metrics, groups, won, lost, same, notes)


def _by_question(a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The change of each question's score where the number is not a mean over questions."""
    pairs = {key: (_share(row), _share(b[key])) for key, row in a.items() if key in b}
    return {key: two - one for key, (one, two) in pairs.items() if one is not None and two is not None}


def _share(row: Mapping[str, Any]) -> float | None:
    value = row.get("score", row.get("right"))
    return float(value) if isinstance(value, bool | int | float) and not row.get("error") else None


def _groups(a: Metric, b: Metric, first: str, second: str) -> list[Compared]:
    names = sorted({group for group in a.groups if group is not None})
    places = {unit: k for k, unit in enumerate(b.units)}
    result = []
    for name in names[:MOST_GROUPS] if len(names) > 1 else []:
        mine = [k for k, group in enumerate(a.groups) if group == name]
        theirs = [places[a.units[k]] for k in mine]
        result.append(_judged(name, _part(a, mine), _part(b, theirs), first, second))
    return result


def _part(metric: Metric, places: Sequence[int]) -> Metric:
    return replace(metric, units=[metric.units[k] for k in places], rows=metric.rows[list(places)], groups=())


def _judged(label: str, a: Metric, b: Metric, first: str, second: str) -> Compared:
    found = difference(a, b)
    change = found.second - found.first
    if found.p > SIGNIFICANT or not change:
        return Compared(label, len(a.units), found, a.unit, "no difference shown", "")
    if not a.better:
        return Compared(label, len(a.units), found, a.unit, f"{second if change > 0 else first} is higher", "")
    winner = "b" if (change > 0) == (a.better == "higher") else "a"
    return Compared(label, len(a.units), found, a.unit, f"{second if winner == 'b' else first} is better", winner)


def p_text(p: float) -> str:
    """``= 0.31``, or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def _score_text(value: float, unit: str) -> str:
    return Score("", value, unit="share" if unit == "share" else "number").text(value)


def difference_text(value: float, unit: str) -> str:
    """A difference with its sign; of shares in percentage points."""
    return f"{100 * value:+.1f} points" if unit == "share" else f"{value:+.4g}"


def _stored(compared: Compared) -> dict[str, Any]:
    found = asdict(compared.found)
    del found["changed"], found["label"]
    numbers = {**found, "difference": compared.found.second - compared.found.first}
    return {"label": compared.label, "count": compared.count, **numbers, "verdict": compared.verdict}


def table(a: StoredRun, b: StoredRun, compared: Sequence[Comparison]) -> str:
    """The comparison for a terminal."""
    lines = []
    for one in compared:
        protocol = f", {one.facts['protocol']}" if one.facts["protocol"] else ""
        lines.append(f"{one.dataset}{protocol}, {one.image} image: a = {a.name}, b = {b.name}")
        lines += [_line(c) for c in one.metrics]
        if one.groups:
            lines.append(f"  {one.metrics[0].label} by group of questions:")
            lines += [_line(c) for c in one.groups]
        if one.won or one.lost or one.same:
            lines.append(f"  questions: b wins {len(one.won)}, loses {len(one.lost)}, equal {one.same}")
        lines += [f"  note: {note}" for note in one.notes]
    return "\n".join(lines)


def _line(c: Compared) -> str:
    low, high = (c.text(v, signed=True) for v in c.found.interval)
    change = c.text(c.found.second - c.found.first, signed=True)
    return (
        f"  {printable(c.label):<16} {c.text(c.found.first):>8} -> {c.text(c.found.second):>8}  {change:>13} "
        f"(95 %: {low.removesuffix(' points')} to {high}, p {p_text(c.found.p)})  {c.verdict}"
    )
