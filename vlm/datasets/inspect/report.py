"""The results of ``vlm data check`` as text and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm.config.run import Packing
from vlm.datasets.inspect.check import DatasetCheck
from vlm.datasets.inspect.lengths import padding_by_mode, percentiles

BATCHING_MODES = {"as_they_come": "as they come", "grouped": "grouped by length", "packed": "packed"}


def report_lines(report: DatasetCheck, found: Mapping[str, Any], limit: int | None = None) -> list[str]:
    """A dataset's results as lines of text; ``found`` are its :func:`check_results`."""
    if report.error:
        return [f"{report.name} ({report.format})", *(f"  cannot be opened: {report.error}".split("\n"))]
    rate = f", {(report.samples + report.bad) / report.seconds:,.0f} records/s" if report.seconds > 0 else ""
    first = f" (the first {limit:,} records only)" if limit else ""
    bare = sum(m == 0 for m in report.media)
    lines = [
        f"{report.name} ({report.format})",
        f"  samples      {report.samples:,} usable, {report.bad:,} bad, {report.missing:,} of them lack a file{first}",
        f"  media        {sum(report.media):,} images and videos, {bare:,} samples without",
    ]
    if report.transparent:
        lines.append(f"  transparent  {report.transparent:,} images, see model.image.background")
    if report.cuts.cut:
        lines.append(f"  cut          {report.cuts}")
    if report.targets:
        lines.append(
            f"  trained      {report.targets:,} tokens, {report.targets / sum(report.lengths):.1%} of all positions"
        )
    if found["length"]:
        unit = "positions in the LLM" if report.unit == "tokens" else "characters of text"
        lines.append(f"  length       {'  '.join(f'{k} {v:,}' for k, v in found['length'].items())}  ({unit})")
    lines.append(f"  time         {report.seconds:.1f} s{rate}")
    if found["padding"]:
        shown = ", ".join(f"{BATCHING_MODES[k]} {v:.1%}" for k, v in found["padding"].items())
        lines.insert(-1, f"  padding      {shown}  (batches of {report.batch_size})")
    for kind, (count, examples) in sorted(report.reasons.items(), key=lambda item: -item[1][0]):
        lines.append(f"  {count:,} x {kind}")
        lines += [f"      {bad.key}: {bad.reason.splitlines()[0]}" for bad in examples]
    return lines


def check_results(report: DatasetCheck, group: int = 0, packing: Packing | None = None) -> dict[str, Any]:
    """The results as plain values for JSON; ``group`` and ``packing``: those of the run."""
    tokens = report.unit == "tokens"
    return {
        "format": report.format,
        "error": report.error,
        "samples": report.samples,
        "bad": report.bad,
        "missing": report.missing,
        "media": sum(report.media),
        "transparent": report.transparent,
        "targets": report.targets,
        "cut": report.cuts.as_dict(),
        "unit": report.unit,
        "length": percentiles(report.lengths),
        "padding": padding_by_mode(report.lengths, report.media, report.batch_size, group, packing) if tokens else {},
        "reasons": {kind: count for kind, (count, _) in report.reasons.items()},
        "seconds": round(report.seconds, 3),
    }
