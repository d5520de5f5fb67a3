"""What a run has trained on: samples, tokens and bad records by dataset, expected and actual shares, padding."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from vlm.common.text import size_text
from vlm.common.types import StoredMedia
from vlm.datasets.loading.batching import BatchRows
from vlm.datasets.loading.cuts import CutCounts

DataReport = dict[str, Any]
"""``{"sources": {name: {"samples", "bad", "tokens", "wanted"}}, "positions"}``; ``wanted`` is the expected share.

A source of which samples were cut also has the keys of :data:`CUT_KEYS`. With a feature cache ``"cache"`` has the keys
of :data:`CACHE_KEYS`.
"""

CUT_KEYS = ("cut", "cut_answers", "cut_turns", "cut_images", "cut_questions")
"""Samples that were cut, and what they lost (see :class:`~vlm.common.types.Cut`)."""


CACHE_KEYS = ("hits", "misses", "damaged", "bytes")
"""Media whose features were read, and were not; those of them with an entry that cannot be used; bytes read."""


class DataStats:
    """Samples and tokens by source (visual tokens included), and positions (padding included) of batches."""

    def __init__(self) -> None:
        self.load_state_dict({})

    def add(self, rows: BatchRows, names: Sequence[str]) -> None:
        """Count the rows of a batch; ``names`` of the sources by number."""
        for sample in (sample for row in rows for sample in row):
            self.samples[names[sample.key[0]]] += 1
            self.tokens[names[sample.key[0]]] += sample.tokens
            self.cuts[names[sample.key[0]]].add(sample.example.cut)
        self.positions += len(rows) * max(sum(sample.tokens for sample in row) for row in rows)

    def add_cached(self, stored: StoredMedia) -> None:
        """Count what came from a feature cache."""
        known = [medium for medium in stored.media if medium is not None]
        self.cache["hits"] += stored.hits
        self.cache["misses"] += len(known) - stored.hits
        self.cache["damaged"] += sum(medium.damaged for medium in known)
        self.cache["bytes"] += sum(group.features.tokens.nbytes for group in stored.groups)

    def cache_report(self) -> dict[str, int]:
        """The counts of the feature cache by name; empty without one."""
        return {key: self.cache[key] for key in CACHE_KEYS} if self.cache else {}

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        cuts = {name: counts.as_dict() for name, counts in self.cuts.items() if counts.cut}
        counts = {"samples": dict(self.samples), "tokens": dict(self.tokens), "positions": self.positions}
        counts |= {"cache": dict(self.cache)} if self.cache else {}
        return {**counts, "cuts": cuts} if cuts else counts

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.samples, self.tokens = Counter[str](state.get("samples")), Counter[str](state.get("tokens"))
        self.positions: int = state.get("positions", 0)
        self.cache = Counter[str](state.get("cache"))
        self.cuts = defaultdict[str, CutCounts](CutCounts)
        self.cuts.update({name: CutCounts(count) for name, count in self.samples.items()})
        self.cuts.update({name: CutCounts(**counts) for name, counts in state.get("cuts", {}).items()})


def sum_nested(values: Sequence[Any]) -> Any:
    """Numbers, or nested mappings of numbers, summed key by key."""
    if not isinstance(values[0], Mapping):
        return sum(values)
    keys = dict.fromkeys(key for value in values for key in value)
    return {key: sum_nested([value[key] for value in values if key in value]) for key in keys}


def combine(reports: Sequence[DataReport]) -> DataReport:
    """The report of all processes together; empty if they have none."""
    if not reports or not reports[0]:
        return {}
    total = sum_nested(reports)
    for name, source in total["sources"].items():
        source["wanted"] = reports[0]["sources"][name]["wanted"]
    return total


def padding_share(report: DataReport) -> float:
    """Share of positions that are padding; an image counts as many positions as it takes in the LLM."""
    tokens = sum(s["tokens"] for s in report["sources"].values())
    return 1 - tokens / report["positions"] if report["positions"] else 0.0


def shares(report: DataReport) -> dict[str, float]:
    """Actual share of the samples by dataset."""
    total = sum(s["samples"] for s in report["sources"].values())
    return {name: s["samples"] / max(total, 1) for name, s in report["sources"].items()}


def to_metrics(report: DataReport) -> dict[str, float]:
    """A report as flat numbers for trackers: ``padding`` and ``data/NAME/{samples,bad,tokens,share,wanted}``."""
    if not report:
        return {}
    flat: dict[str, float] = {"padding": padding_share(report)}
    actual = shares(report)
    for name, source in report["sources"].items():
        flat |= {f"data/{name}/{key}": value for key, value in {**source, "share": actual[name]}.items()}
    return flat | {f"cache_{key}": value for key, value in report.get("cache", {}).items()}


def from_metrics(flat: Mapping[str, Any]) -> DataReport:
    """The report of which :func:`to_metrics` made ``flat``; empty if ``flat`` has none."""
    if "padding" not in flat:
        return {}
    names = [key[5:-6] for key in flat if key.startswith("data/") and key.endswith("/share")]
    keys = ("samples", "bad", "tokens", "wanted", *CUT_KEYS)
    sources = {name: {k: flat[f"data/{name}/{k}"] for k in keys if f"data/{name}/{k}" in flat} for name in names}
    tokens = sum(s["tokens"] for s in sources.values())
    cache = {key: flat[f"cache_{key}"] for key in CACHE_KEYS if f"cache_{key}" in flat}
    found = {"sources": sources, "positions": round(tokens / (1 - flat["padding"]))}
    return {**found, "cache": cache} if cache else found


def report_table(report: DataReport) -> str:
    """A report as a table of text."""
    rows = [("dataset", "samples", "bad", "tokens", "share", "wanted")]
    actual = shares(report)
    for name, s in report["sources"].items():
        counts = (f"{s[key]:,}" for key in ("samples", "bad", "tokens"))
        rows.append((name, *counts, f"{actual[name]:.2%}", f"{s['wanted']:.2%}"))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    for name, s in report["sources"].items():
        if s.get("cut"):
            lines.append(f"{name}: cut {CutCounts(s['samples'], *(s[key] for key in CUT_KEYS))}")
    if cache := report.get("cache"):
        media, damaged = cache["hits"] + cache["misses"], f", {cache['damaged']:,} damaged" if cache["damaged"] else ""
        read = f"{cache['hits']:,} of {media:,} media read ({size_text(cache['bytes'])})"
        lines.append(f"feature cache: {read}, {cache['misses']:,} computed{damaged}")
    return "\n".join([*lines, f"padding: {padding_share(report):.2%} of {report['positions']:,} positions"])
