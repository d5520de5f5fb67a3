"""A tracker: step and loss as CSV."""

from vlm import register_tracker
from vlm.runners.train.trackers import LogRecord, RunInfo, Tracker


@register_tracker("csv")
class CsvTracker(Tracker):
    """Writes ``loss.csv`` into the run folder; only the first process has trackers."""

    def __init__(self, info: RunInfo) -> None:
        super().__init__(info)
        self.out = (info.path / "loss.csv").open("a", encoding="utf-8")

    def log(self, record: LogRecord) -> None:
        """Take one record; ``kind`` is ``train`` (every step) or ``valid``."""
        if record["kind"] == "train":
            self.out.write(f"{record['step']},{record['loss']:.6f}\n")

    def close(self) -> None:
        """Close the file."""
        self.out.close()
