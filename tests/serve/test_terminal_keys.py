"""``vlm chat`` at a real (pseudo-)terminal: editing, history, completion, Ctrl-C, images."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image as Images

pytest.importorskip("pty", reason="a system without pseudo-terminals")
pytest.importorskip("readline", reason="Python without readline")

from vlm.common.errors import printable
from vlm.common.types import Message
from vlm.inference.batching.answer import Answer
from vlm.inference.generation import EVALUATION
from vlm.inference.session import ChatSession
from vlm.serve.terminal.inline import Inline
from vlm.serve.terminal.talk import talk
from vlm.systems.minigpt4.template import Vicuna0
from vlm.testing import tiny_engine

from ..inference.conftest import LLM, SIZES
from .pseudo_terminal import PseudoTerminal, plain
from .sixel_reader import read_sixel

UP, LEFT, CTRL_A, CTRL_C, CTRL_D = "\x1b[A", "\x1b[D", "\x01", "\x03", "\x04"
Start = Callable[..., PseudoTerminal]


@pytest.fixture
def start(tmp_path: Path, monkeypatch) -> Iterator[Start]:
    """``start(tokens=6, pause=0, **options of talk)``: a conversation; what it leaves behind is in ``tmp_path``."""
    opened: list[PseudoTerminal] = []
    monkeypatch.chdir(tmp_path)

    def make(tokens: int = 6, pause: float = 0, environ: dict[str, str] | None = None, **options) -> PseudoTerminal:
        def program() -> int:
            engine = tiny_engine(
                LLM, Vicuna0(Vicuna0.Config()), **SIZES
            )  # here, so that its threads are this process's
            push = Answer.push
            Answer.push = lambda *args: (time.sleep(pause), push(*args))[1]  # type: ignore[method-assign]
            generation = EVALUATION.replace(max_new_tokens=tokens, min_length=tokens + 1)
            return talk(ChatSession(engine, generation), [], **options)

        for within in (10.0, 10.0, 40.0):  # the child of a process with threads may find a lock held that nobody frees
            opened.append(PseudoTerminal(program, {"VLM_STATE": str(tmp_path / "state"), **(environ or {})}))
            with contextlib.suppress(AssertionError if within < 40 else ()):
                opened[-1].until("you: ", within)
                break
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.close()


def saved(terminal: PseudoTerminal, file: Path) -> list[Message]:
    """The conversation, after the program has written it and ended."""
    terminal.type(f"/save {file}\n")
    terminal.until("saved to")
    terminal.until("you: ")
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    return json.loads(file.read_text())["messages"]


def test_lines_are_edited_and_go_on(start: Start, tmp_path: Path) -> None:
    terminal = start()
    terminal.type(f"lo wrld{LEFT}{LEFT}{LEFT}o{CTRL_A}Hel\n")
    terminal.until("model: ")
    terminal.until("you: ")
    terminal.type("one\\\n")
    terminal.until("...  ")
    terminal.type("two\\\n")
    terminal.until("...  ")
    terminal.type("three\n")
    terminal.until("model: ")
    terminal.until("you: ")
    terminal.type('"""\n')
    terminal.until("...  ")
    terminal.type('a "quoted" word\n')
    terminal.until("...  ")
    terminal.type('end"""\n')
    terminal.until("model: ")
    terminal.until("you: ")
    terminal.type("left alone")
    terminal.until("left alone")
    time.sleep(0.2)  # readline waits for a key again; a signal on the way there is seen at the next key only
    terminal.type(CTRL_C)
    terminal.until("you: ")
    questions = [m["content"] for m in saved(terminal, tmp_path / "a.json") if m["role"] == "user"]
    assert questions == ["Hello world", "one\ntwo\nthree", 'a "quoted" word\nend']


def test_what_was_typed_is_there_the_next_time(start: Start, tmp_path: Path) -> None:
    for first in (True, False):
        terminal = start(history=True)
        terminal.type("What is this?\n" if first else UP + UP + "\n")
        terminal.until("model: ")
        terminal.until("you: ")
        terminal.type(" a secret\n")
        terminal.until("model: ")
        terminal.until("you: ")
        terminal.type("/quit\n")
        assert terminal.end() == 0
        assert plain(terminal.shown).count("What is this?") >= 1
    file = tmp_path / "state" / "chat_history"
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        "What is this?",
        "/quit",
        "What is this?",
        "/quit",
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_nothing_is_kept_where_not_wanted(start: Start, tmp_path: Path) -> None:
    terminal = start(history=False)
    terminal.type("What is this?\n")
    terminal.until("model: ")
    terminal.until("you: ")
    terminal.type(UP)  # within this conversation it is there
    terminal.until("What is this?")
    terminal.type("\n")
    terminal.until("model: ")
    terminal.until("you: ")
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    assert not (tmp_path / "state").exists()


def test_commands_and_paths_are_completed(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "some images"
    folder.mkdir()
    for name in ("red.png", "red square.png"):
        Images.new("RGB", (8, 8), "red").save(folder / name)
    terminal = start()
    terminal.type("/im\tsome\t")
    terminal.until("/image some images/")
    terminal.type("r\t\t\t")
    shown = plain(terminal.until("red.png"))
    assert "red square.png" in shown and str(tmp_path) not in shown
    terminal.type(" s\t\n")
    terminal.until("you (1 image): ")
    terminal.type("What is this?\n")
    terminal.until("model: ")
    terminal.until("you: ")
    (part, _), _ = (m["content"] for m in saved(terminal, tmp_path / "a.json"))
    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    assert data == (folder / "red square.png").read_bytes()


def test_ctrl_c_stops_an_answer_and_keeps_what_was_written(start: Start, tmp_path: Path) -> None:
    terminal = start(tokens=200, pause=0.01, speed=True)
    terminal.type("Go on.\n")
    terminal.until("model: ")
    time.sleep(0.2)
    terminal.type(CTRL_C)
    written = plain(terminal.until(" [stopped]")).removesuffix(" [stopped]").replace("^C", "")
    shown = terminal.until("you: ")
    found = re.search(r"(\d+) tokens, [\d.]+ tokens/s, first after [\d.]+ s", plain(shown))
    assert found and 1 <= int(found.group(1)) < 200
    assert b"\x1b[2m" in shown  # faint
    question, answer = saved(terminal, tmp_path / "a.json")
    assert question["content"] == "Go on."
    assert "".join(printable(answer["content"]).split()) == "".join(written.split()) != ""


def test_kitty_gets_the_pixels(start: Start, tmp_path: Path) -> None:
    image = Images.radial_gradient("L").resize((600, 600)).convert("RGB")
    image.putpixel((0, 0), (255, 0, 0))
    image.save(tmp_path / "a.png")
    terminal = start(environ={"KITTY_WINDOW_ID": "1"}, inline=Inline.AUTO)
    terminal.type("/image a.png\n")
    shown = terminal.until("you (1 image): ")
    commands = re.findall(rb"\x1b_G([^;]*);([^\x1b]*)\x1b\\", shown)
    assert all(len(data) <= 4096 and (len(data) % 4 == 0) for _, data in commands) and len(commands) > 1
    assert commands[0][0] == b"a=T,f=100,q=2,m=1"
    assert {keys for keys, _ in commands[1:-1]} <= {b"m=1"} and commands[-1][0] == b"m=0"
    seen = Images.open(io.BytesIO(base64.b64decode(b"".join(data for _, data in commands))))
    image.thumbnail((480, 320))
    assert seen.size == (320, 320) and seen.tobytes() == image.tobytes()


def test_a_terminal_that_says_so_gets_sixel(start: Start, tmp_path: Path) -> None:
    image = Images.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (10, 5, 30, 20))
    image.save(tmp_path / "a.png")
    terminal = start(inline=Inline.AUTO)
    terminal.type("/image a.png\n")
    terminal.until(b"\x1b[c")
    terminal.type("\x1b[?62;4;22c")
    shown = terminal.until("you (1 image): ")
    (sequence,) = re.findall(rb"\x1bP[^\x1b]*\x1b\\", shown)
    assert read_sixel(sequence.decode()).tobytes() == image.tobytes()
    terminal.type("/image a.png\n")
    assert b"\x1b[c" not in terminal.until("you (2 images): ")  # it is asked once
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_a_terminal_that_does_not_answer_gets_no_image(start: Start, tmp_path: Path, monkeypatch) -> None:
    Images.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr("vlm.serve.terminal.screen.attributes.__defaults__", (0.05,))
    terminal = start(inline=Inline.AUTO)
    terminal.type("/image a.png\n")
    shown = terminal.until("you (1 image): ")
    assert b"\x1b[c" in shown and b"\x1bP" not in shown and b"\x1b_G" not in shown
    terminal.type("What is this?\n")
    terminal.until("model: ")
