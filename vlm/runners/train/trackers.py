"""Where the metrics of a run go. ``@register_tracker("name")`` adds one that ``run.trackers`` can name.

Records are flat dicts. ``kind`` is ``train`` (one per step), ``valid``, or ``eval`` (scores ``DATASET/METRIC``); all
other values are numbers. ``spike`` follows the step that is one, with its value, median and limit, and the list
``sample_ids``. Every ``log_freq`` steps a training record also has ``padding`` and
``data/NAME/{samples,bad,tokens,share,wanted}``.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.common.errors import UserError
from vlm.common.owned import replace_text
from vlm.common.registry import register_tracker, resolve

log = logging.getLogger(__name__)

LogRecord = dict[str, Any]  # a line of the log


@dataclass(frozen=True)
class RunInfo:
    """What a tracker may need at the start."""

    path: Path
    name: str
    total_steps: int
    start_step: int = 0  # from which a resumed run continues
    log_freq: int = 50
    project: str = "vlm"
    config: dict[str, Any] | None = None  # resolved, as plain values


class Tracker:
    """Base: ignores everything."""

    def __init__(self, info: RunInfo) -> None:
        self.info = info

    def log(self, record: LogRecord) -> None:
        """Take one record."""

    def close(self) -> None:
        """Write what is pending."""


@register_tracker("jsonl")
class JsonlTracker(Tracker):
    """One JSON line per record in ``log.jsonl``, every float with full precision."""

    def __init__(self, info: RunInfo) -> None:
        super().__init__(info)
        self.file = info.path / "log.jsonl"
        if self.file.exists():  # drop the steps that a resumed run repeats, and a last line truncated by a crash
            kept = [json.dumps(r) + "\n" for r in of_steps(read_log(self.file)) if r["step"] <= info.start_step]
            replace_text(self.file, "".join(kept))
        self._out = self.file.open("a", encoding="utf-8", buffering=1)

    def log(self, record: LogRecord) -> None:
        """Append the record."""
        self._out.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._out.close()


def read_log(file: Path) -> list[LogRecord]:
    """All complete records of a ``log.jsonl``, whatever else is in it; none if there is no file."""
    records, strange = list[LogRecord](), 0
    for line in file.read_bytes().split(b"\n") if file.is_file() else []:
        try:
            record = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            strange += 1
            continue
        if isinstance(record, dict):
            records.append(record)
        else:
            strange += record is not None
    if strange:
        log.warning("%s: left out %d incomplete or strange lines", file, strange)
    return records


def of_steps(records: Sequence[LogRecord]) -> list[LogRecord]:
    """Those that state their kind and step: what a run writes."""
    return [r for r in records if isinstance(r.get("step"), int) and isinstance(r.get("kind"), str)]


def window_mean(records: Sequence[LogRecord]) -> LogRecord:
    """The newest record with the loss (weighted by tokens), rates, norms and skipped steps of all."""
    mean = dict(records[-1])
    targets = sum(r["targets"] for r in records)
    seconds = sum(r["seconds"] for r in records)
    mean["loss"] = sum(r["loss"] * r["targets"] for r in records) / max(targets, 1)
    for key in ("samples", "tokens"):
        mean[f"{key}_per_s"] = sum(r[key] for r in records) / max(seconds, 1e-9)
    for key in [*(k for k in mean if k.startswith("loss_")), "grad_norm", "seconds", "data_seconds"]:
        mean[key] = sum(r[key] for r in records) / len(records)
    mean["skipped"] = sum(r.get("skipped", 0) for r in records)
    return mean | _mean_speed(records)


def _mean_speed(records: Sequence[LogRecord]) -> LogRecord:
    """The speeds that the newest record has, over all records: work by time, not the mean of rates."""
    newest, seconds = records[-1], max(sum(r["seconds"] for r in records), 1e-9)
    mean = {f"{key}_per_second": sum(r[key] for r in records) / seconds for key in ("samples", "tokens")}
    known = [r for r in records if "flops" in r]
    if "flops" not in newest or newest["tflops"] <= 0:
        return {key: value for key, value in mean.items() if key in newest}
    rate = sum(r["flops"] for r in known) / max(sum(r["seconds"] for r in known), 1e-9) / 1e12
    speed = {"tflops": rate}
    if "mfu" in newest:  # the peak is the same for all
        speed["mfu"] = newest["mfu"] * rate / newest["tflops"]
    return {key: value for key, value in mean.items() if key in newest} | speed


def speed_line(record: LogRecord) -> str:
    """TFLOP/s and share of the device's peak; empty where the record has none."""
    if "tflops" not in record:
        return ""
    return f"  {record['tflops']:.3g} TFLOP/s" + (f" (MFU {record['mfu']:.0%})" if "mfu" in record else "")


class WindowTracker(Tracker):
    """Base of trackers that take a mean every ``log_freq`` steps, and every validation."""

    def __init__(self, info: RunInfo) -> None:
        super().__init__(info)
        self._window: list[LogRecord] = []

    def log(self, record: LogRecord) -> None:
        """Collect steps; pass on means and validations."""
        if record["kind"] != "train":
            self.write(record)
            return
        self._window.append(record)
        if record["step"] % self.info.log_freq == 0 or record["step"] == self.info.total_steps:
            self.write(window_mean(self._window))
            self._window = []

    def write(self, record: LogRecord) -> None:
        """Take a mean or a validation."""
        raise NotImplementedError


def _scores(record: LogRecord) -> list[tuple[str, float]]:
    return [(k, v) for k, v in record.items() if "/" in k]


def _scalars(record: LogRecord) -> dict[str, float]:
    numbers = {k: float(v) for k, v in record.items() if k not in ("kind", "step") and isinstance(v, int | float)}
    return {f"{record['kind']}/{k}": v for k, v in numbers.items()}


@contextmanager
def _needs(asked: str, fix: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{asked}, which is not installed", fix=fix) from error


@register_tracker("tensorboard")
class TensorboardTracker(WindowTracker):
    """Event files in ``tensorboard/``."""

    def __init__(self, info: RunInfo) -> None:
        super().__init__(info)
        with _needs("run.trackers names tensorboard", "pip install tensorboard, or leave it out of run.trackers"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(info.path / "tensorboard"), purge_step=info.start_step + 1)

    def write(self, record: LogRecord) -> None:
        """Write scalars named ``train/...``, ``valid/...`` and ``eval/...``."""
        for name, value in _scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


@register_tracker("wandb")
class WandbTracker(WindowTracker):
    """Weights & Biases; also chosen by the published ``run.wandb_log: true``. A resumed run goes on as the same one."""

    def __init__(self, info: RunInfo) -> None:
        super().__init__(info)
        with _needs("run.wandb_log (or run.trackers) asks for wandb", "pip install wandb, or set run.wandb_log=false"):
            import wandb
        id_file = info.path / "wandb_id"
        known = id_file.read_text().strip() if info.start_step and id_file.exists() else None
        self._run = wandb.init(
            project=info.project, name=info.name, dir=str(info.path), config=info.config, id=known, resume="allow"
        )
        id_file.write_text(self._run.id)

    def write(self, record: LogRecord) -> None:
        """Log scalars at their step."""
        self._run.log(_scalars(record), step=record["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


@register_tracker("progress")
class ProgressTracker(WindowTracker):
    """A bar with loss, rate and remaining time on a terminal; elsewhere one log line every ``log_freq`` steps."""

    def __init__(self, info: RunInfo) -> None:
        super().__init__(info)
        self._bar: Any = None
        self._moved: list[tuple[logging.StreamHandler, Any]] = []
        self._started = time.monotonic()
        if sys.stderr.isatty():
            self._open_bar()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        name, numbers = TextColumn("{task.description}"), TextColumn("{task.fields[numbers]}")
        columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), numbers)
        self._bar = Progress(*columns, console=Console(stderr=True))
        info = self.info
        self._task = self._bar.add_task(info.name, total=info.total_steps, completed=info.start_step, numbers="")
        plain = sys.stderr
        self._bar.start()
        for handler in logging.getLogger("vlm").handlers:  # log lines go above the bar, not into it
            if isinstance(handler, logging.StreamHandler) and handler.stream is plain:
                self._moved.append((handler, handler.setStream(sys.stderr)))

    def log(self, record: LogRecord) -> None:
        """Move the bar at every step; numbers as in a window tracker."""
        if self._bar is not None and record["kind"] == "train":
            rate = record["samples"] / max(record["seconds"], 1e-9)
            numbers = f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  {rate:.1f} samples/s"
            self._bar.update(self._task, completed=record["step"], numbers=numbers)
        super().log(record)

    def write(self, record: LogRecord) -> None:
        """One line."""
        if record["kind"] == "valid":
            log.info("step %d  valid loss %.4f", record["step"], record["loss"])
        elif record["kind"] == "eval":
            log.info("step %d  %s", record["step"], ", ".join(f"{k} {v:.4g}" for k, v in _scores(record)))
        elif self._bar is None and record["kind"] == "train":
            log.info("%s", self.line(record))

    def line(self, record: LogRecord) -> str:
        """The text of a training line."""
        done = record["step"] - self.info.start_step
        left = (time.monotonic() - self._started) / max(done, 1) * (self.info.total_steps - record["step"])
        parts = ", ".join(f"{k[5:]} {v:.4f}" for k, v in record.items() if k.startswith("loss_"))
        loss = f"loss {record['loss']:.4f}" + (f" ({parts})" if parts else "")
        return (
            f"step {record['step']}/{self.info.total_steps}  {loss}  lr {record['lr']:.3e}  "
            f"grad {record['grad_norm']:.3g}  {record['samples_per_s']:.1f} samples/s  "
            f"{record['tokens_per_s']:.0f} tokens/s{speed_line(record)}  "
            f"data {record['data_seconds'] / record['seconds']:.0%}  mem {record['memory_mib']:.0f} MiB  "
            f"eta {duration(left)}{data_line(record)}"
        )

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            for handler, stream in self._moved:
                handler.setStream(stream)
            self._bar.stop()


def data_line(record: LogRecord) -> str:
    """Padding, and with several datasets their realised and wanted shares; empty where the record has none."""
    if "padding" not in record:
        return ""
    names = [key[5:-6] for key in record if key.startswith("data/") and key.endswith("/share")]
    shares = (f"{n} {record[f'data/{n}/share']:.1%} of {record[f'data/{n}/wanted']:.1%}" for n in names)
    bad = sum(int(record[f"data/{n}/bad"]) for n in names)
    data = f"  data {', '.join(shares)}" if len(names) > 1 else ""
    return f"  padding {record['padding']:.1%}{data}" + (f"  bad {bad}" if bad else "")


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    whole = int(seconds) if math.isfinite(seconds) else 0
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def open_trackers(names: Sequence[str], info: RunInfo) -> list[Tracker]:
    """The trackers called ``names``, in order and without repeats.

    Raises ConfigError: unknown name; UserError: an optional package is missing.
    """
    return [resolve("tracker", name)(info) for name in dict.fromkeys(names)]
