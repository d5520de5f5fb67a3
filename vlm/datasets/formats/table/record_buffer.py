"""Records of text files, kept as bytes.

A list of dictionaries costs five times the memory of its file, and once more in every loader worker: reading an
object writes its reference count, so that a forked process soon owns a copy of every page.
"""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from vlm.common.errors import DataError

Record = dict[str, Any]


class PackedRecords(Sequence[Record]):
    """Records in one buffer, each made anew on access; one that could not be read raises its fault there.

    Attributes:
        names: all fields that occur.
        faults: number of a record -> why it cannot be read.
    """

    def __init__(self, found: Iterable[Record | DataError]) -> None:
        """Takes the records in order; they must be plain values, as JSON and CSV give them."""
        self.names: set[str] = set()
        self.faults: dict[int, str] = {}
        self._data, self._ends = bytearray(), array("q", [0])
        for number, record in enumerate(found):
            if isinstance(record, DataError):
                self.faults[number] = str(record)
            else:
                self.names.update(record)
                self._data += marshal.dumps(record)  # only ever read by this run; much faster than JSON
            self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index in self.faults:
            raise DataError(self.faults[index])
        with memoryview(self._data) as view:
            return marshal.loads(view[self._ends[index] : self._ends[index + 1]])
