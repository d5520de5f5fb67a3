"""Bad records: logged, counted, and an error when there are too many."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from vlm.common.errors import DataError
from vlm.common.text import lines_of
from vlm.datasets.loading.sources import BadRecord

log = logging.getLogger(__name__)

MIN_BAD = 3
"""Fewer bad records than this never stop a run."""

SHOWN_RECORDS = 3
"""Bad records that the error message quotes."""

EARLY = 1000
"""Below this many records the limit is widened by three standard deviations, so that bad luck does not stop a run."""


def too_many(bad: int, total: int, max_share: float, early: int = EARLY) -> bool:
    """Whether ``bad`` of ``total`` records, at least 3, are more than ``max_share`` explains; see :data:`EARLY`."""
    most = max_share * total
    if total < early:
        most += 3 * math.sqrt(most * (1 - max_share))
    return bad >= MIN_BAD and bad > most


class Quarantine:
    """Counts records per source; ``quarantine.jsonl`` in the output folder has one line per bad record."""

    def __init__(self, output_dir: str | Path | None, max_share: float = 0.01, early: int = EARLY) -> None:
        """``early``: records of a source below which the limit is widened, see :data:`EARLY`."""
        self._file = Path(output_dir) / "quarantine.jsonl" if output_dir else None
        self._max_share, self._early = max_share, early
        self.bad, self.good = Counter[str](), Counter[str]()
        self._examples = defaultdict[str, list[BadRecord]](list)

    @cached_property
    def _known(self) -> set[tuple[str, str]]:
        """Records written before the run was interrupted, so that none is written twice.

        Read at the first bad record: a loader is made before its run clears the folder of an earlier run.
        """
        known = set[tuple[str, str]]()
        if self._file is None or not self._file.is_file():
            return known
        for text in lines_of(self._file.read_text("utf-8", "replace")):
            with suppress(ValueError, TypeError, KeyError):  # half a line of a killed run
                line = json.loads(text)
                known.add((str(line["source"]), str(line["key"])))
        return known

    def count(self, good: Mapping[str, int], bad: Sequence[BadRecord]) -> None:
        """Count usable records by source, and bad ones of any source. Raises as :meth:`add`."""
        for source in dict.fromkeys([*good, *(b.source for b in bad)]):
            self.add(source, good.get(source, 0), [b for b in bad if b.source == source])

    def add(self, source: str, good: int, bad: Sequence[BadRecord]) -> None:
        """Count records of a source.

        Raises DataError: at least 3 bad records, and more than the allowed share of the source explains.
        """
        self.good[source] += good
        examples = self._examples[source]
        for record in bad:
            self.bad[source] += 1
            examples += [record] if len(examples) < SHOWN_RECORDS and record not in examples else []
            self._write(record)
        count = self.bad[source]
        total = count + self.good[source]
        if bad and too_many(count, total, self._max_share, self._early):
            shown = "".join(f"\n  - {b.key}: {b.reason}" for b in examples)
            raise DataError(
                f"dataset {source}: {count} of {total} records could not be used, "
                f"allowed are {self._max_share:.1%}:{shown}",
                fix=f"repair the data (all bad records: {self._file or 'quarantine.jsonl of an output folder'}), "
                "or raise run.max_bad_share",
            )

    def _write(self, record: BadRecord) -> None:
        """Log a record and append it to the file, once in however many passes."""
        if (record.source, record.key) in self._known:
            return
        self._known.add((record.source, record.key))
        log.warning("%s: left out %s: %s", record.source, record.key, record.reason)
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(record.line())

    def state_dict(self) -> dict[str, dict[str, int]]:
        """The counts."""
        return {"good": dict(self.good), "bad": dict(self.bad)}

    def load_state_dict(self, state: dict[str, dict[str, int]]) -> None:
        """Continue from a saved state."""
        self.good, self.bad = Counter(state["good"]), Counter(state["bad"])
