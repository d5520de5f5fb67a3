"""``write_report``: the HTML report of a run folder from its log, configuration and provenance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from vlm.checkpoint.provenance import read_provenance
from vlm.checkpoint.run_folder import RunDir
from vlm.common.owned import replace_text
from vlm.datasets.loading import data_stats
from vlm.pages.charts import number
from vlm.pages.parts import AnswerCard
from vlm.pages.report import page
from vlm.runners.train.trackers import LogRecord, duration, of_steps, read_log


def write_report(
    run_dir: str | Path | RunDir,
    samples: Sequence[AnswerCard] = (),
    *,
    title: str | None = None,
    status: str = "finished",
    table: str = "",
) -> Path:
    """Write ``report.html`` into a run folder.

    Args:
        run_dir: folder of the run.
        samples: answers to show.
        title: heading; the folder's name by default.
        status: how the run ended.
        table: text table of trained parameters.

    Raises:
        DataError: a sample's image cannot be read.
    """
    run = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)
    records = of_steps(read_log(run.log_file))
    steps, valid, scores = ([r for r in records if r["kind"] == kind] for kind in ("train", "valid", "eval"))
    counted = [r for r in records if "padding" in r]
    text = page(
        title or run.path.resolve().name,
        status,
        steps,
        valid,
        scores,
        read_provenance(run.last()),
        place=str(run.path),
        tiles=_tiles(steps, valid),
        samples=samples,
        spikes=[r for r in records if r["kind"] == "spike"],
        data=data_stats.report_table(data_stats.from_metrics(counted[-1])) if counted else "",
        trained=table,
        config=run.config_file.read_text(encoding="utf-8", errors="replace") if run.config_file.is_file() else "",
    )
    replace_text(run.report, text)
    return run.report


def _tiles(steps: Sequence[LogRecord], valid: Sequence[LogRecord]) -> list[tuple[str, str]]:
    if not steps:
        return []
    tail = steps[-max(1, min(20, len(steps) // 10)) :]
    seconds = sum(r["seconds"] for r in steps)
    lowest = [("lowest validation loss", f"{min(r['loss'] for r in valid):.4g}")] if valid else []
    return [
        ("steps", f"{steps[-1]['step']:,}"),
        ("training time", duration(seconds) if seconds >= 60 else f"{seconds:.1f} s"),
        ("training loss at the end", f"{statistics.fmean(r['loss'] for r in tail):.4g}"),
        *lowest,
        ("samples seen", number(sum(r["samples"] for r in steps))),
        ("samples per second", number(statistics.median(r["samples"] / max(r["seconds"], 1e-9) for r in steps))),
        ("tokens per second", number(statistics.median(r["tokens"] / max(r["seconds"], 1e-9) for r in steps))),
        *_utilisation(steps),
        ("waiting for data", f"{sum(r['data_seconds'] for r in steps) / max(seconds, 1e-9):.0%}"),
        ("peak memory", f"{max(r['memory_mib'] for r in steps) / 1024:.2f} GiB"),
    ]


def _utilisation(steps: Sequence[LogRecord]) -> list[tuple[str, str]]:
    """TFLOP/s of one process and its share of the device's peak, where they were measured."""
    rates, shares = ([r[key] for r in steps if key in r] for key in ("tflops", "mfu"))
    found = [("TFLOP/s of a process", number(statistics.median(rates)))] if rates else []
    return found + ([("of the device's peak", f"{statistics.median(shares):.0%}")] if shares else [])
