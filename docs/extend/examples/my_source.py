"""A source: a folder with ``best_run.txt``, which names a run folder beside it."""

from collections.abc import Sequence
from pathlib import Path

from vlm import register_source
from vlm.config.types import Config
from vlm.inference.load import RunFolder

FILE = "best_run.txt"


@register_source("best_of")
class BestOf:
    """``vlm.load("sweep")`` opens the run that ``sweep/best_run.txt`` names."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is such a folder; must not raise."""
        return (path / FILE).is_file()

    def config(self, path: Path, options: Sequence[str] = ()) -> Config:
        """The checked configuration, with ``key=value`` changes on top."""
        name = (path / FILE).read_text(encoding="utf-8").strip()
        return RunFolder().config(path / name, options)
