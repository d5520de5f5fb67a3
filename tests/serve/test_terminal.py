"""``vlm chat``: its commands, what it keeps, what reaches the terminal."""

from __future__ import annotations

import base64
import io
import json
import re
import stat

import numpy as np
import pytest
from PIL import Image as Images

from vlm.common.errors import PromptError, UserError
from vlm.common.types import Image, Video
from vlm.inference.batching.answer import Answer
from vlm.inference.generation import EVALUATION
from vlm.inference.session import ChatSession
from vlm.inference.streaming import StreamedText
from vlm.pages.conversation import markdown, page
from vlm.processors.image.sixel import as_sixel
from vlm.serve.terminal import lines
from vlm.serve.terminal.commands import HELP, carry_out
from vlm.serve.terminal.inline import Inline, Shower, detected, encoded
from vlm.serve.terminal.lines import append_history, completions, read_history
from vlm.serve.terminal.state import Talk
from vlm.serve.terminal.talk import once
from vlm.systems.minigpt4.template import Vicuna0
from vlm.testing import tiny_engine

from ..inference.conftest import LLM, SIZES
from .sixel_reader import read_sixel


@pytest.fixture(scope="module")
def engine():
    return tiny_engine(LLM, Vicuna0(Vicuna0.Config()), **SIZES)


@pytest.fixture
def mine(engine, tmp_path, monkeypatch) -> Talk:
    monkeypatch.chdir(tmp_path)
    Images.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    return Talk(ChatSession(engine, EVALUATION.replace(max_new_tokens=6)))


def typed(mine: Talk, *texts: str) -> None:
    for text in texts:
        assert carry_out(mine, text)


def said(mine: Talk) -> list[str]:
    return [message.text for message in mine.session.messages]


def test_undo_and_retry(mine, capsys) -> None:
    typed(mine, "/image red.png", "What is this?", "And now?")
    before = list(mine.session.messages)
    typed(mine, "/retry")
    assert said(mine) == [m.text for m in before]  # greedy
    typed(mine, "/undo")
    assert mine.session.messages == before[:2] and mine.waiting == []
    typed(mine, "/undo")
    assert mine.session.messages == [] and mine.prompt == "you (1 image): "
    typed(mine, "What is this?")
    assert said(mine) == [m.text for m in before[:2]]  # the same image
    assert "taken back: And now?" in capsys.readouterr().out
    mine.session.reset()
    for command in ("/undo", "/retry", "/again"):
        with pytest.raises(PromptError):
            typed(mine, command)


def test_an_answer_stays_where_no_other_is_written(mine, monkeypatch) -> None:
    typed(mine, "What is this?")
    before = list(mine.session.messages)
    monkeypatch.setattr(mine.session, "prompt", lambda: mine.session.engine.chat(""))
    with pytest.raises(PromptError):
        typed(mine, "/retry")
    assert mine.session.messages == before


def test_an_answer_stopped_before_its_first_word_is_none(mine, monkeypatch) -> None:
    def stopped(*_) -> Answer:
        answer = Answer(mine.session.engine.processor.tokenizer, str.strip, list)
        answer.end("cancelled")
        return answer

    monkeypatch.setattr(mine.session.engine, "submit", stopped)
    typed(mine, "/image red.png", "What is this?")
    assert mine.session.messages == [] and mine.waiting == ["red.png"]
    assert mine.session.chat("Hello?") == "" and mine.session.messages == []


def test_control_characters_of_an_answer_do_nothing(mine, monkeypatch, capsys) -> None:
    """However they are divided into pieces: titles, colours, a cleared screen, C1 codes, a carriage return."""
    pieces = ["a\x1b", "]0;evil\x07", "\x9b2J", "\x1b[31m", "é\r", "\u202e\ttab\nline \x7f", "\x1bP", "q\x1b", "\\"]

    def stream(*_, **__):
        yield from map(StreamedText, pieces)
        mine.session.messages.append(mine.session.messages.pop())

    monkeypatch.setattr(mine.session, "stream", stream)
    typed(mine, "What is this?")
    out = capsys.readouterr().out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", out)
    assert r"\x1b]0;evil\x07\x9b2J\x1b[31mé\x0d" in out and "\ttab\nline" in out
    monkeypatch.setattr(mine.session, "answer", lambda: "".join(pieces))
    once(mine.session, ["What?"], [])
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", capsys.readouterr().out)


def test_system_text(mine, capsys) -> None:
    typed(mine, "Hello?")
    first = said(mine)[-1]
    typed(mine, "/reset", "/system You are a pirate who answers in one word only.", "Hello?")
    assert "pirate" in mine.session.engine.text(mine.session.prompt()[:-1])
    assert said(mine)[-1] != first
    typed(mine, "/reset", "/system", "Hello?")
    assert mine.session.system is None and said(mine)[-1] == first


def test_stats(mine, capsys) -> None:
    typed(mine, "/stats")
    assert "none yet" in capsys.readouterr().out
    typed(mine, "/image red.png", "What is this?", "/stats")
    out = capsys.readouterr().out
    record, total = mine.session.last, mine.session.engine.positions
    assert f"{record.positions} positions of {total} ({record.positions / total:.0%})" in out
    assert f"{record.written} tokens" in out and f"{record.cached} of {record.prompt}" in out
    assert re.search(r"memory +[\d,]+ MiB", out)


def test_save(mine, tmp_path, capsys) -> None:
    with pytest.raises(PromptError, match="nothing to save"):
        typed(mine, "/save a.json")
    typed(mine, "/image red.png", "What is <b>this</b>?", "/save a.json", "/save 'b c.md'", "/save d.html")
    again = ChatSession.from_json(mine.session.engine, (tmp_path / "a.json").read_text())
    assert [m.text for m in again.messages] == said(mine)
    text = (tmp_path / "b c.md").read_text()
    assert "![image red.png](<red.png>)" in text and "**You**" in text and said(mine)[1] in text
    html = (tmp_path / "d.html").read_text()
    assert "What is &lt;b&gt;this&lt;/b&gt;?" in html and "<b>this" not in html
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    red = np.asarray(Images.open(io.BytesIO(base64.b64decode(data))))[4, 4]
    assert red[0] > 240 and red[1] < 20
    (tmp_path / "e.json").write_text("mine")
    for name, message in (("e.json", "exists"), ("f.txt", "suffix"), ("no/g.json", "cannot be written"), ("", "needs")):
        with pytest.raises(UserError, match=message):
            typed(mine, f"/save {name}")
    assert (tmp_path / "e.json").read_text() == "mine"


def test_pages_name_what_is_gone(mine, tmp_path) -> None:
    typed(mine, "/image red.png", "What is this?")
    (tmp_path / "red.png").unlink()
    assert "image red.png" in page(mine.session, "t") and "<img" not in page(mine.session, "t")
    pixels = Image(mine.session.messages[0].media[0].source.clone())
    other = ChatSession(mine.session.engine, mine.session.generation)
    other.ask("What?", [pixels])
    assert "(image)" in markdown(other, "t")


def test_paths_as_shells_and_file_managers_write_them(mine, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Images.new("RGB", (8, 8)).save(tmp_path / "a b.png")
    for path in ("a b.png", "'a b.png'", '"a b.png"', r"a\ b.png", "~/a b.png", f"{tmp_path}/a\\ b.png "):
        typed(mine, f"/image {path}")
    assert len(mine.waiting) == 6
    typed(mine, "What?")
    assert len({medium.source.sum().item() for medium in mine.session.messages[0].media}) == 1


def test_help_names_every_command(mine, capsys) -> None:
    typed(mine, "/help", "/nothing \x1b[31m")
    assert capsys.readouterr().out.count(HELP) == 2
    listed = re.findall(r"^  (/\w+)", HELP, re.MULTILINE)
    assert listed == ["/image", "/video", "/retry", "/undo", "/system", "/reset", "/save", "/stats", "/help", "/quit"]


def test_completions(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a b.png", "a.png", ".hidden", "c"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "d.png").touch()
    assert completions("/re", 0) == ["/retry ", "/reset "]
    assert completions("What", 0) == [] == completions("What is /i", 8)
    assert completions("/image ", 7) == ["a b.png", "a.png", "c", "folder/"]
    assert completions("/image a b", 9) == ["b.png"]  # the last word is replaced
    assert completions("/save 'fol", 6) == ["'folder/"]
    assert completions("change image:folder/", 7) == ["image:folder/d.png"]
    assert completions("/image nowhere/", 7) == [] == completions("/image \0/", 7)
    assert completions("/undo ", 6) == []


def test_history_is_bounded_and_private(tmp_path, monkeypatch) -> None:
    file = tmp_path / "state" / "chat_history"
    append_history(file, "one\ntwo \u2028 é \ud800")
    file.chmod(0o644)
    append_history(file, "three")
    assert read_history(file) == ["one\ntwo \u2028 é \ud800", "three"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with file.open("ab") as out:
        out.write(b"damaged \xff\n3\n")
    assert read_history(file)[-1] == "three"
    monkeypatch.setattr(lines, "LARGEST", 5000)
    for number in range(200):
        append_history(file, f"{number} " + "x" * 100)
    assert file.stat().st_size <= 5200 and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_history(file)[-1].startswith("199 ") and read_history(file)[-20].startswith("180 ")
    assert [f.name for f in file.parent.iterdir()] == ["chat_history"]
    assert read_history(tmp_path) == [] == read_history(tmp_path / "none")


def test_a_history_that_cannot_be_written_is_told_once(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("readline")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLM_STATE", str(tmp_path / "file"))
    monkeypatch.setattr("builtins.input", lambda prompt: "Hello")
    reader = lines.Lines(interactive=True, history=True)
    assert [reader.read("you: "), reader.read("you: ")] == ["Hello", "Hello"]
    assert capsys.readouterr().out.count("what is typed is not kept") == 1


def test_lines_of_a_pipe_are_taken_as_they_are(monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "a \\frac \\\\")
    assert lines.Lines(interactive=False, history=True).read("you: ") == "a \\frac \\\\"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-kitty"}, Inline.KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "3"}, Inline.KITTY),
        ({"TERM": "xterm-ghostty"}, Inline.KITTY),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, Inline.ITERM),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, Inline.ITERM),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, Inline.ITERM),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "3"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "3"}, Inline.OFF),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)
def test_what_a_terminal_shows(environ, expected) -> None:
    assert detected(environ) is expected


def test_iterm_gets_the_pixels() -> None:
    image = Images.radial_gradient("L").convert("RGB")
    head, _, data = encoded(image, Inline.ITERM, (100, 50)).rpartition(":")
    png = base64.b64decode(data.removesuffix("\x07"))
    assert head == f"\x1b]1337;File=inline=1;size={len(png)};preserveAspectRatio=1"
    assert Images.open(io.BytesIO(png)).size == (50, 50) and image.size == (256, 256)


def test_sixel_is_the_image_in_256_colours() -> None:
    y, x = np.mgrid[0:47, 0:61]
    levels = np.stack([x * 4, y * 5, (x + y) * 2], -1).astype(np.uint8)
    seen = np.asarray(read_sixel(as_sixel(levels, (1000, 1000)))).astype(int)
    assert seen.shape == levels.shape
    assert np.abs(seen - levels).mean() < 8  # 3.3 measured: the palette, and percentages in place of levels
    small = read_sixel(as_sixel(levels, (30, 30)))
    assert small.size == (30, 23)


def test_what_cannot_be_shown_is_left_out(capsys, tmp_path) -> None:
    shower = Shower(Inline.KITTY)
    shower.show(str(tmp_path / "none.png"))
    shower.show(Video(str(tmp_path / "none.mp4")))
    assert capsys.readouterr().out == ""
    shower.show(Video([np.full((6, 6, 3), 200, np.uint8), np.zeros((6, 6, 3), np.uint8)]))
    data = re.fullmatch(r"\x1b_Ga=T,f=100,q=2,m=0;([^\x1b]*)\x1b\\\n", capsys.readouterr().out).group(1)
    assert Images.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) == (200, 200, 200)


def test_saved_json_is_the_fields_form(mine, tmp_path) -> None:
    typed(mine, "/system Be brief.", "Hello?", "/save a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    assert list(found) == ["model", "messages"]
    assert [m["role"] for m in found["messages"]] == ["system", "user", "assistant"]
