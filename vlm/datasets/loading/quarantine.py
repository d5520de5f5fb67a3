"""Bad records: written down, counted, and an error when they are too many."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from vlm.common.errors import DataError
from vlm.datasets.loading.worker import Bad

log = logging.getLogger(__name__)

AT_LEAST = 3
"""Fewer bad records than this never stop a run."""

EXAMPLES = 3
"""Records that the message shows."""

EARLY = 1000
"""So many records must have been seen before the share is taken at its word; chance is allowed for until then."""


class Quarantine:
    """Counts records per source; ``quarantine.jsonl`` in the output folder has one line per bad record."""

    def __init__(self, output_dir: str | Path | None, max_share: float = 0.01, early: int = EARLY) -> None:
        """Below ``early`` records of a source, what ``max_share`` gives by chance (three deviations) is allowed too."""
        self._file = Path(output_dir) / "quarantine.jsonl" if output_dir else None
        self._max_share, self._early = max_share, early
        self._known = self._read()
        self.bad: dict[str, int] = {}
        self.good: dict[str, int] = {}
        self._examples: dict[str, list[Bad]] = {}

    def _read(self) -> set[tuple[str, str]]:
        """Records written by an earlier start of the run, so that none is written twice."""
        if self._file is None or not self._file.is_file():
            return set()
        lines = [json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        return {(line["source"], line["key"]) for line in lines}

    def add(self, source: str, good: int, bad: Sequence[Bad]) -> None:
        """Count a batch.

        Raises:
            DataError: at least 3 bad records, and more than the allowed share of the source explains.
        """
        self.good[source] = self.good.get(source, 0) + good
        for item in bad:
            self.bad[source] = self.bad.get(source, 0) + 1
            examples = self._examples.setdefault(source, [])
            examples += [item] if len(examples) < EXAMPLES and item not in examples else []
            self._write(item)
        count = self.bad.get(source, 0)
        total = count + self.good[source]
        if bad and count >= AT_LEAST and count > self._most(total):
            shown = "".join(f"\n  - {b.key}: {b.reason}" for b in self._examples[source])
            raise DataError(
                f"dataset {source}: {count} of {total} records could not be used, "
                f"allowed are {self._max_share:.1%}:{shown}",
                fix=f"repair the data (all of them: {self._file or 'set an output folder'}) or raise max_bad_share",
            )

    def _most(self, total: int) -> float:
        """How many bad records of ``total`` a source may have."""
        expected = self._max_share * total
        return expected + (3 * math.sqrt(expected * (1 - self._max_share)) if total < self._early else 0.0)

    def _write(self, item: Bad) -> None:
        """Tell and write down a record, once however many passes come by it."""
        if (item.source, item.key) in self._known:
            return
        self._known.add((item.source, item.key))
        log.warning("%s: left out %s: %s", item.source, item.key, item.reason)
        if self._file is None:
            return
        line = {"source": item.source, "key": item.key, "reason": item.reason}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def state_dict(self) -> dict[str, dict[str, int]]:
        """The counts."""
        return {"good": dict(self.good), "bad": dict(self.bad)}

    def load_state_dict(self, state: dict[str, dict[str, int]]) -> None:
        """Go on counting from a saved state."""
        self.good, self.bad = dict(state["good"]), dict(state["bad"])
