"""Clips in the terminal chat: the option, the command, and what is said about unusable ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm.cli.main import main
from vlm.common.errors import DataError
from vlm.common.types import Image, Video
from vlm.inference.engine import Engine
from vlm.inference.session import ChatSession
from vlm.serve.gradio.session import PageChat

from ..golden.helpers_lynx import LynxCase
from ..runners.lynx_small import CASE, composition, moving_square


@pytest.fixture
def session() -> ChatSession:
    torch.set_num_threads(1)
    engine = Engine.load(LynxCase(CASE).shipped(), device="cpu")
    return ChatSession(engine, engine.default_generation().replace(max_new_tokens=4))


def chat(monkeypatch: pytest.MonkeyPatch, *lines: str, options: tuple[str, ...] = (), folder: Path) -> int:
    """A talk that types ``lines``; the exit code."""
    typed = iter([*lines, "/quit"])
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or next(typed))
    code = main(["chat", str(composition(folder)), "--device", "cpu", "--max-new-tokens", "3", *options])
    chat.asked = asked  # type: ignore[attr-defined]
    return code


def test_clip_is_attached_by_command_and_by_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clip = str(moving_square(tmp_path / "a.mp4", (255, 0, 0)))
    lines = (f"/video '{clip}'", "What moves?", "clear", "/reset")
    assert chat(monkeypatch, *lines, options=("--video", clip), folder=tmp_path) == 0
    assert chat.asked == ["you (1 video): ", "you (2 videos): ", "you: ", "you (2 videos): ", "you: "]  # type: ignore[attr-defined]
    assert "model: " in capsys.readouterr().out


def test_unusable_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 20)
    lines = ("/video", "/video nothing.mp4", f"/video {tmp_path / 'bad.mp4'}")
    assert chat(monkeypatch, *lines, folder=tmp_path) == 0
    said = capsys.readouterr().out
    for text in ("/video needs the path of a file", "nothing.mp4: no such file or folder", "bad.mp4: no video that"):
        assert "! " in said and text in said
    assert chat(monkeypatch, folder=tmp_path, options=("--video", "nothing.mp4")) == 2
    assert "video nothing.mp4: no such file" in capsys.readouterr().err


def test_session_keeps_pixels_of_images_and_clips(session: ChatSession, tmp_path: Path) -> None:
    clip = moving_square(tmp_path / "a.mp4", (0, 0, 255))
    image = str(CASE / "images" / "img_0.png")
    session.ask("What is it?", [Video(str(clip)), Image(image), image])
    media = session.messages[0].media
    assert [type(m).__name__ for m in media] == ["Video", "Image", "Image"]
    assert media[0].source.shape == (3, 3, 56, 56) and torch.equal(media[1].source, media[2].source)
    clip.unlink()  # it was read when it was attached
    first = session.answer()
    session.regenerate()
    assert session.answer() == first
    again = ChatSession(session.engine, session.generation)
    again.ask("What is it?", media)
    assert again.answer() == first


def test_model_of_images_refuses_a_clip(session: ChatSession, tmp_path: Path) -> None:
    session.engine.processor.video = None
    with pytest.raises(DataError, match="a.mp4: this model takes images only"):
        session.ask("What?", [Video(str(moving_square(tmp_path / "a.mp4", (0, 0, 255))))])
    assert not session.messages


def test_page_takes_a_clip(session: ChatSession, tmp_path: Path) -> None:
    clip = str(moving_square(tmp_path / "a.mp4", (0, 0, 255)))
    chat = PageChat({"m": session.engine})
    chat.ask("What moves?", [clip])
    list(chat.write({"m": session.generation}))
    chat.ask("And now?")
    assert [len(turn.asked["m"].media) for turn in chat.branches.shown] == [1, 0]
    assert chat.branches.shown[0].files == (Video(clip),)
    list(chat.write({"m": session.generation}))
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 20)
    with pytest.raises(DataError, match="bad.mp4: no video that"):
        chat.ask("And this?", [str(tmp_path / "bad.mp4")])
    assert len(chat.branches.shown) == 2


def test_page_takes_clips_where_the_model_does(session: ChatSession) -> None:
    pytest.importorskip("gradio")
    from vlm.serve.gradio.events import Models
    from vlm.serve.gradio.layout import build

    def kinds() -> list[str]:
        page = build(Models({"m": session.engine}, {"m": session.generation}))
        parts = page.get_config_file()["components"]
        return next(p["props"]["file_types"] for p in parts if p["props"].get("elem_id") == "question")

    assert kinds() == ["image", "video"]
    session.engine.processor.video = None
    assert kinds() == ["image"]
