from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm.common.errors import DataError
from vlm.datasets.loading.quarantine import Quarantine
from vlm.datasets.loading.sources import BadRecord


def bad(key: str) -> BadRecord:
    return BadRecord("birds", key, f"image {key}: corrupt")


def test_one_line_per_bad_record_even_over_restarts(tmp_path: Path) -> None:
    for _ in range(2):
        quarantine = Quarantine(tmp_path / "run")
        quarantine.add("birds", 500, [bad("1"), bad("2")])
        quarantine.add("birds", 500, [bad("1")])
    lines = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert lines == [{"source": "birds", "key": k, "reason": f"image {k}: corrupt"} for k in ("1", "2")]
    assert quarantine.state_dict() == {"good": {"birds": 1000}, "bad": {"birds": 3}}


def test_too_many_bad_records_stop_the_run_with_three_examples(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.add("cats", 100, [])
    quarantine.add("birds", 1, [bad("1"), bad("2")])  # two are never too many
    with pytest.raises(DataError, match=r"dataset birds: 4 of 55 records .* allowed are 1.0%") as caught:
        quarantine.add("birds", 50, [bad("3"), bad("4")])
    text = str(caught.value)
    assert [f"- {k}: image {k}: corrupt" in text for k in "1234"] == [True, True, True, False]
    assert "quarantine.jsonl" in text


def test_a_few_bad_records_at_the_start_are_put_down_to_chance() -> None:
    quarantine = Quarantine(None)
    quarantine.add("birds", 196, [bad(str(k)) for k in range(4)])  # 2 %, where 1 % gives that many every tenth time
    quarantine.add("birds", 786, [bad(str(k)) for k in range(4, 11)])
    with pytest.raises(DataError, match=r"12 of 1002 records"):
        quarantine.add("birds", 8, [bad("11")])
    with pytest.raises(DataError, match="4 of 200 records"):
        Quarantine(None, early=0).add("birds", 196, [bad(str(k)) for k in range(4)])


def test_examples_are_different_records() -> None:
    quarantine = Quarantine(None)
    with pytest.raises(DataError) as caught:
        quarantine.add("birds", 1, [bad("1"), bad("2"), bad("1"), bad("3")])
    assert [str(caught.value).count(f"- {k}: image {k}") for k in "123"] == [1, 1, 1]


def test_a_record_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    quarantine = Quarantine(None)
    for _ in range(2):
        quarantine.add("birds", 500, [bad("1")])
    assert caplog.text.count("left out 1: image 1: corrupt") == 1
    assert quarantine.bad == {"birds": 2}


def test_reasons_are_written_as_they_read(tmp_path: Path) -> None:
    Quarantine(tmp_path).add("birds", 1, [bad("\u56fe")])
    assert "image \u56fe: corrupt" in (tmp_path / "quarantine.jsonl").read_text(encoding="utf-8")


def test_the_allowed_share_can_be_raised() -> None:
    quarantine = Quarantine(None, max_share=0.5, early=0)
    quarantine.add("birds", 5, [bad("1"), bad("2"), bad("3"), bad("4"), bad("5")])
    with pytest.raises(DataError, match="50.0%"):
        quarantine.add("birds", 0, [bad("6")])


def test_half_a_line_of_a_killed_run_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "quarantine.jsonl").write_text('{"source": "birds", "key": "1", "reason": "x"}\n{"source": "bi')
    quarantine = Quarantine(tmp_path)
    quarantine.add("birds", 1000, [bad("1")])
    assert (tmp_path / "quarantine.jsonl").read_text().count("\n") == 1


def test_what_a_cleared_folder_listed_is_reported_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A fresh run over an earlier one: its loader exists before the folder is cleared."""
    Quarantine(tmp_path).add("birds", 100, [bad("1")])
    fresh = Quarantine(tmp_path)
    (tmp_path / "quarantine.jsonl").unlink()
    caplog.clear()
    fresh.add("birds", 100, [bad("1")])
    assert "left out 1: image 1: corrupt" in caplog.text and (tmp_path / "quarantine.jsonl").is_file()


def test_lines_of_others_in_the_file_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "quarantine.jsonl").write_bytes(b'{}\n[1]\n7\nx}\n\xff\n{"source": "birds", "key": "1"}\n')
    Quarantine(tmp_path).add("birds", 100, [bad("1"), bad("2")])
    assert (tmp_path / "quarantine.jsonl").read_bytes().count(b"birds") == 2
