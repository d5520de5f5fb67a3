"""Log lines come from rank 0 only; ``say`` writes to stdout."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlm.common.logging import busy, quiet, say, setup_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    logger = logging.getLogger("vlm")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    for handler in logger.handlers:
        if handler not in before[0]:
            handler.close()
    logger.handlers, logger.level, logger.propagate = list(before[0]), before[1], before[2]


def test_rank_0_logs_to_stderr_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(file=tmp_path / "logs" / "log.txt", rank=0)
    logging.getLogger("vlm.x").info("hello")
    logging.getLogger("vlm.x").warning("careful")
    err = capsys.readouterr().err
    assert " hello\n" in err
    assert " warning: careful\n" in err
    assert "vlm.x" not in err, "the module's name is for the file"
    assert "I vlm.x: hello" in (tmp_path / "logs" / "log.txt").read_text()


def test_other_ranks_only_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    setup_logging(file=tmp_path / "log.txt")
    logging.getLogger("vlm.x").info("hello")
    logging.getLogger("vlm.x").warning("careful")
    err = capsys.readouterr().err
    assert "hello" not in err
    assert "careful" in err
    assert not (tmp_path / "log.txt").exists()


def test_setting_up_twice_does_not_double_lines(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(rank=0)
    setup_logging(rank=0)
    logging.getLogger("vlm.x").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_quiet_leaves_warnings_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(rank=0)
    with quiet("vlm.x"):
        logging.getLogger("vlm.x.y").info("detail")
        logging.getLogger("vlm.x.y").warning("careful")
        logging.getLogger("vlm.z").info("other")
    logging.getLogger("vlm.x.y").info("again")
    err = capsys.readouterr().err
    assert "detail" not in err
    assert all(text in err for text in ("careful", "other", "again"))


def test_busy_says_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with busy("loading"):
        pass
    assert capsys.readouterr() == ("", "")


def test_say(capsys: pytest.CaptureFixture[str]) -> None:
    say("a", end="")
    say("b")
    assert capsys.readouterr().out == "ab\n"
