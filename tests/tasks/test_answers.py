"""Processes share questions, keep their answers as they come, and all get all of them."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from vlm.common import dist
from vlm.tasks.answers import Answer, AnswerParts, share_out


def test_two_processes_share_what_an_interrupted_run_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {number: f"key{number}" for number in range(6)}
    AnswerParts(tmp_path / "answers", "same").add({"key2": "before"})
    asked: list[list[int]] = []

    def answer(mine: list[int]) -> Generator[dict[int, Answer], None, None]:
        asked.append(mine)
        for k in mine:
            yield {k: Answer("", "broken") if k == 5 else Answer(f"text {k}")}

    kept = AnswerParts(tmp_path / "answers", "same")
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "gather_objects", lambda own: [own, {k: Answer(f"theirs {k}") for k in (1, 4)}])
    found = share_out(keys, answer, 2, kept)
    assert asked == [[0, 3, 5]]  # 2 was answered before, and the other process has 1 and 4
    assert found == {0: "text 0", 1: "theirs 1", 2: "before", 3: "text 3", 4: "theirs 4", 5: ""}
    assert found[5].error == "broken" and "key5" not in kept.done
    assert kept.done["key1"] == "theirs 1"  # so that the next questions are shared in the same way
    lines = (tmp_path / "answers.part-0").read_text().splitlines()[1:]
    assert lines == ['["key2", "before"]', '["key0", "text 0"]', '["key3", "text 3"]']
