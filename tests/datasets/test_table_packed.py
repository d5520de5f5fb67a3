from __future__ import annotations

import pickle
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.datasets.formats.table.record_buffer import PackedRecords

RECORDS: list[dict[str, Any]] = [
    {"id": 7, "nested": {"a": [1, 2.5, None, True]}, "nan": float("inf")},
    {},
    {"text": "\u56fe\u7247 \ud800", "id": 2**70},
]


def test_records_come_back_as_they_were() -> None:
    packed = PackedRecords(RECORDS)
    assert list(packed) == RECORDS
    assert packed.names == {"id", "nested", "nan", "text"}
    assert list(pickle.loads(pickle.dumps(packed))) == RECORDS
    packed[0]["id"] = 8
    assert packed[0]["id"] == 7


def test_ends_of_the_list() -> None:
    packed = PackedRecords(RECORDS)
    for index in (-1, 3):
        with pytest.raises(IndexError):
            packed[index]
    assert len(PackedRecords([])) == 0


def test_a_record_that_could_not_be_read() -> None:
    packed = PackedRecords([{"a": 1}, DataError("line 2", fix="mend it"), {"a": 3}])
    assert (len(packed), packed[2], set(packed.faults)) == (3, {"a": 3}, {1})
    with pytest.raises(DataError, match="^line 2\n  fix: mend it$"):
        packed[1]


def test_memory_is_that_of_the_text() -> None:
    packed = PackedRecords({"id": str(k), "question": "What is it?", "answers": ["a", "b"]} for k in range(1000))
    assert len(packed._data) < 80 * 1000
