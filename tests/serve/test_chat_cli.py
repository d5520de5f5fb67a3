"""The terminal chat, driven through its arguments and standard input."""

from __future__ import annotations

import argparse
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlm.common.errors import DataError, UserError
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT
from vlm.inference.session import ChatSession
from vlm.serve import chat_cli
from vlm.serve.options import changes_of, device_of, usual

from ..inference.small import CASE, write_config

PICTURE = str(CASE / "image.png")


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    chat_cli.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_config(tmp_path_factory.mktemp("small")))


@pytest.fixture
def session(engine: Engine) -> ChatSession:
    return ChatSession(engine, CHAT.but(**changes_of(parse("x", "--greedy", "--max-new-tokens", "6"))))


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    feed: Iterator[str | type[BaseException]] = iter(lines)

    def read(prompt: str) -> str:
        line = next(feed, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", read)


def test_asks_once_and_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_config(tmp_path))
    flags = ["--greedy", "--max-new-tokens", "8", "--repetition-penalty", "1.05"]
    args = parse(config, "--image", PICTURE, "--ask", "What is in the picture?", "--ask", "And now?", *flags)
    assert chat_cli.main(args) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("5ooamward river")  # the published answer's beginning
    assert second != first


def test_conversation(session: ChatSession, monkeypatch, capsys) -> None:
    lines = (f"/image {PICTURE}", "", "What is this?", "/again", "And its colour?", "/help", "/quit", "never read")
    typed(monkeypatch, *lines)
    assert chat_cli.talk(session, []) == 0
    out = capsys.readouterr().out
    assert out.count("model: ") == 3
    assert out.count("/image PATH") == 2  # at the start and on /help
    assert [len(m.media) for m in session.messages] == [1, 0, 0, 0]
    assert session.messages[1].text in out and session.messages[3].text in out


def test_mistakes_are_told_and_the_chat_goes_on(session: ChatSession, monkeypatch, capsys) -> None:
    typed(
        monkeypatch,
        "/image nowhere.png",
        "/again",
        "word " * 300,
        "What is this?",
        "/reset",
        "Next?",
        KeyboardInterrupt,
    )
    assert chat_cli.talk(session, [PICTURE]) == 0
    out = capsys.readouterr().out
    assert "! " in out and "nowhere.png" in out
    assert "no answer to write again" in out
    assert "positions" in out
    assert [m.text for m in session.messages if m.role == "user"] == ["Next?"]
    assert session.messages[0].media == ()


def test_interrupt_keeps_what_was_written(session: ChatSession, monkeypatch, capsys) -> None:
    typed(monkeypatch, "Go on.")
    shown: list[str] = []

    def say(text: str = "", end: str = "\n") -> None:
        shown.append(text)
        if len(shown) == 4:  # help, "model: ", two pieces
            raise KeyboardInterrupt

    monkeypatch.setattr(chat_cli, "say", say)
    assert chat_cli.talk(session, []) == 0
    assert " [stopped]" in shown
    assert session.messages[-1].role == "assistant"
    assert session.messages[-1].text == "".join(shown[2:4])


def test_options_become_a_generation() -> None:
    changes = changes_of(parse("x", "--num-beams", "4", "--seed", "7", "--top-k", "0"))
    assert changes == {"num_beams": 4, "seed": 7, "top_k": 0}
    assert changes_of(parse("x", "--greedy")) == {"do_sample": False}
    assert usual(None) is CHAT
    with pytest.raises(UserError, match="temperature is 0"):
        changes_of(parse("x", "--temperature", "0"))


def test_gpu_id_means_the_accelerator_if_there_is_one() -> None:
    assert device_of(parse("x")) is None
    assert device_of(parse("x", "--device", "cpu", "--gpu-id", "1")) == "cpu"
    import torch

    if not torch.accelerator.is_available():
        assert device_of(parse("x", "--gpu-id", "0")) == torch.device("cpu")


def test_bad_picture_is_a_user_error(session: ChatSession) -> None:
    with pytest.raises(DataError, match=r"absent\.png"):
        chat_cli.once(session, ["What?"], ["absent.png"])
