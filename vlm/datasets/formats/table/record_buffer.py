"""Records of text files, kept as bytes.

A list of dictionaries takes five times the memory of its file, and again in every loader worker: reading an object
writes its reference count, so a forked process soon owns a copy of every page.
"""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from vlm.common.errors import DataError

Record = dict[str, Any]


class PackedRecords(Sequence[Record]):
    """Records in one buffer, decoded on access; an unreadable one raises its fault then.

    Attributes:
        names: all fields that occur.
        faults: index of a record -> why it cannot be read.
    """

    def __init__(self, found: Iterable[Record | DataError]) -> None:
        """``found``: the records in order, plain values as JSON and CSV give them."""
        self.names: set[str] = set()
        self.faults: dict[int, str] = {}
        self._data, self._ends = bytearray(), array("q", [0])
        for number, record in enumerate(found):
            if isinstance(record, DataError):
                self.faults[number] = str(record)
            else:
                try:
                    self._data += marshal.dumps(record)  # read by this run only; much faster than JSON
                    self.names.update(record)
                except ValueError as error:  # nested more than 2000 levels deep
                    self.faults[number] = f"record {number} is nested too deeply ({error})"
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

    def keep(self, count: int) -> None:
        """Drop all records after the first ``count``."""
        del self._ends[count + 1 :]
        del self._data[self._ends[-1] :]
        self.faults = {index: fault for index, fault in self.faults.items() if index < count}
