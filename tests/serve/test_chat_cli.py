"""The terminal chat, driven through its arguments and standard input."""

from __future__ import annotations

import argparse
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlm.cli import chat
from vlm.cli.options import changes_of, device_of, options_of
from vlm.common.errors import DataError, UserError
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT, default_generation
from vlm.inference.session import ChatSession
from vlm.serve.terminal import state
from vlm.serve.terminal import talk as chat_cli

from ..inference.small import CASE, write_config

IMAGE = str(CASE / "image.png")


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    chat.Chat().add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_config(tmp_path_factory.mktemp("small")))


@pytest.fixture
def session(engine: Engine) -> ChatSession:
    return ChatSession(engine, CHAT.replace(**changes_of(parse("x", "--greedy", "--max-new-tokens", "6"))))


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
    args = parse(config, "--image", IMAGE, "--ask", "What is in the image?", "--ask", "And now?", *flags)
    assert chat.Chat().main(args) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("5ooamward river")  # the published answer's beginning
    assert second != first


def test_conversation(session: ChatSession, monkeypatch, capsys) -> None:
    lines = (f"/image {IMAGE}", "", "What is this?", "/again", "And its colour?", "/help", "/quit", "never read")
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
    assert chat_cli.talk(session, [IMAGE]) == 0
    out = capsys.readouterr().out
    assert "! " in out and "nowhere.png" in out
    assert "no answer to regenerate" in out
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
    monkeypatch.setattr(state, "say", say)
    assert chat_cli.talk(session, []) == 0
    assert " [stopped]" in shown
    assert session.messages[-1].role == "assistant"
    assert session.messages[-1].text == "".join(shown[2:4])


def test_options_become_a_generation() -> None:
    changes = changes_of(parse("x", "--num-beams", "4", "--seed", "7", "--top-k", "0"))
    assert changes == {"num_beams": 4, "seed": 7, "top_k": 0}
    assert changes_of(parse("x", "--greedy")) == {"do_sample": False}
    assert default_generation(None) is CHAT
    with pytest.raises(UserError, match="temperature is 0"):
        changes_of(parse("x", "--temperature", "0"))


def test_gpu_id_means_the_accelerator_if_there_is_one() -> None:
    assert device_of(parse("x")) is None
    assert device_of(parse("x", "--device", "cpu", "--gpu-id", "1")) == "cpu"
    import torch

    if not torch.accelerator.is_available():
        assert device_of(parse("x", "--gpu-id", "0")) == torch.device("cpu")


def test_bad_image_is_a_user_error(session: ChatSession) -> None:
    with pytest.raises(DataError, match=r"absent\.png"):
        chat_cli.once(session, ["What?"], ["absent.png"])


def test_published_words_and_flags(session: ChatSession, monkeypatch, capsys) -> None:
    other = str(CASE / "data" / "cc_sbu_align" / "image" / "2.jpg")
    typed(
        monkeypatch,
        "What is this?",
        "clear",
        "Again, what is this?",
        f"change image:{other}",
        "change image:nowhere.png",
        "change image:",
        "And this?",
        "exit",
        "never read",
    )
    assert chat_cli.talk(session, [IMAGE]) == 0
    out = capsys.readouterr().out
    assert out.count("model: ") == 3 and "nowhere.png" in out and "needs the path" in out
    (asked,) = [m for m in session.messages if m.role == "user"]
    assert asked.text == "And this?"
    recipe = session.engine.processor.image
    assert (asked.media[0].source == recipe(other)).all()


def test_the_same_image_after_clear(session: ChatSession, monkeypatch, capsys) -> None:
    session.reset()
    typed(monkeypatch, "What is this?", "clear", "clear", "What is this?", "exit")
    assert chat_cli.talk(session, [IMAGE]) == 0
    first, second = (part.split("\n")[0] for part in capsys.readouterr().out.split("model: ")[1:])
    assert first == second
    assert [len(m.media) for m in session.messages] == [1, 0]


def test_devices_that_are_not_there() -> None:
    assert device_of(parse("x", "--only-cpu")) == "cpu" == device_of(parse("x", "--gpus", ""))
    for flags, said in (
        (("--gpus", "97"), "GPU 97 was asked for, but this machine has"),
        (("--gpus", "97,98"), "GPU 97"),
        (("--gpus", "one"), "expected numbers separated by commas"),
        (("--only_cpu", "--gpus", "0"), "exclude each other"),
        (("--only-cpu", "--device", "cuda"), "exclude each other"),
    ):
        with pytest.raises(UserError, match=said):
            device_of(parse("x", *flags))


def test_8_bit_is_an_option_of_the_llm(monkeypatch) -> None:
    import torch

    from vlm.models.quantized import llm as quantize
    from vlm.models.quantized.llm import check_quantize

    monkeypatch.setattr(quantize.int8, "unsupported", lambda: "the CPU has no AVX512-VNNI")
    with pytest.raises(UserError, match="int8 is not possible: the CPU has no AVX512-VNNI"):
        options_of(parse("x", "--load-in-8bit", "--only-cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"int8 needs the package bitsandbytes"):
        check_quantize("int8", torch.device("cuda", 0))
    monkeypatch.setattr(quantize, "check_quantize", lambda mode, device: None)
    assert options_of(parse("x", "--load_in_8bit", "--only-cpu")) == ["model.llm.quantize=int8"]
    flags = ("--load_in_8bit", "--only-cpu", "--options", "run.seed", "1")
    assert options_of(parse("x", *flags)) == ["run.seed", "1", "model.llm.quantize", "int8"]
    assert options_of(parse("x", "--options", "run.seed=1")) == ["run.seed=1"]
