"""``compare_page``: a comparison of two evaluations as the page shows it."""

from __future__ import annotations

from collections.abc import Sequence

from vlm.pages.compare_eval import KINDS, Change, Question, Section, Shown, page, question_of
from vlm.runners.evaluate.results.compare import SHORT, Compared, Comparison, p_text
from vlm.runners.evaluate.results.stored_run import StoredRun

EXAMPLES = 20
"""Questions won that are shown of a dataset, and as many lost."""


def compare_page(a: StoredRun, b: StoredRun, compared: Sequence[Comparison], media_root: str = "") -> Shown:
    """The page; images are read from ``media_root`` alone."""
    runs = [(f"a: {a.name}", str(a.file)), (f"b: {b.name}", str(b.file))]
    questions = [q for one in compared for q in _questions(a, b, one)]
    return page((a.name, b.name), runs, [_section(one) for one in compared], questions, media_root)


def _section(one: Comparison) -> Section:
    facts = {k: v[:SHORT] if k == "data" else v for k, v in one.facts.items()}
    main = one.metrics[0]
    low, high = main.found.interval
    change = main.text(main.found.second - main.found.first, signed=True)
    bounds = f"95 % interval {_bare(main, low)} to {_bare(main, high)}"
    sentence = f"{main.label}: {main.verdict}; the difference is {change} ({bounds}, p {p_text(main.found.p)})."
    if one.same and not (one.won or one.lost):
        sentence = f"{main.label}: {main.verdict}; every question has the same score in both runs."
    counts = len(one.won), len(one.lost), one.same
    name = one.dataset if one.image == "right" else f"{one.dataset}, {one.image} image"
    return Section(name, facts, sentence, _changes(one.metrics), _changes(one.groups), counts, one.notes)


def _changes(found: Sequence[Compared]) -> list[Change]:
    """Rows with one axis for all shares, and one for each other number."""
    reach = max([0.01, *(_reach(c) for c in found if c.unit == "share")])
    result = []
    for c in found:
        low, high = c.found.interval
        change = c.found.second - c.found.first
        bounds = f"{_bare(c, low)} to {_bare(c, high)}"
        result.append(
            Change(
                c.label,
                c.count,
                c.text(c.found.first),
                c.text(c.found.second),
                c.text(change, signed=True),
                bounds,
                p_text(c.found.p).removeprefix("= "),
                c.verdict,
                c.winner,
                (change, low, high),
                reach if c.unit == "share" else _reach(c) or 1.0,
            )
        )
    return result


def _bare(c: Compared, value: float) -> str:
    """A difference without its unit."""
    return c.text(value, signed=True).removesuffix(" points")


def _reach(c: Compared) -> float:
    return max(abs(v) for v in (c.found.second - c.found.first, *c.found.interval))


def _questions(a: StoredRun, b: StoredRun, one: Comparison) -> list[Question]:
    """The questions that changed most, as far as both answers files know them."""
    place = one.dataset, one.image
    mine, theirs = a.answers.get(place, {}), b.answers.get(place, {})
    metric = a.metrics[place][0]
    groups = dict(zip(metric.units, metric.groups, strict=False))
    result = []
    for kind, changed in zip(KINDS, (one.won, one.lost), strict=True):
        known = [key for key in changed if key in mine and key in theirs]
        for key in known[:: max(1, len(known) // EXAMPLES)][:EXAMPLES]:
            rows = [(f"a: {a.name}", mine[key]), (f"b: {b.name}", theirs[key])]
            result.append(question_of(key, kind, rows, groups.get(key) or ""))
    return result
