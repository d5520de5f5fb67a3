"""A conversation in the terminal, or questions asked once from a script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm.common.errors import UserError
from vlm.common.logging import say
from vlm.common.types import Video

if TYPE_CHECKING:
    from vlm.inference.session import ChatSession

HELP = """Type a question and press Enter. Commands:
  /image PATH   add an image to the next question
  /video PATH   add a video (a file, or a folder of its frames)
  /again        regenerate the last answer
  /reset        start over: forget images and history
  /help         this text
  /quit         exit (or Ctrl-D); Ctrl-C stops an answer
Also understood: `change image:PATH` (start over with that image), `clear` (start over with the same one), `exit`"""

CHANGE = "change image:"


def once(session: ChatSession, questions: list[str], images: list[Any]) -> int:
    """Ask the questions one after another, images and videos with the first; print one answer per line."""
    for number, question in enumerate(questions):
        session.ask(question, images if number == 0 else ())
        say(session.answer())
    return 0


def talk(session: ChatSession, images: list[Any]) -> int:
    """Read questions until the user exits."""
    waiting: list[Any] = list(images)
    say(HELP + "\n")
    while True:
        try:
            line = input(_prompt(waiting)).strip()
        except EOFError:
            say()
            return 0
        except KeyboardInterrupt:
            say()
            continue
        if line in ("/quit", "/exit", "exit"):
            return 0
        try:
            waiting = _turn(session, line, waiting)
        except UserError as error:
            session.take_back()
            say(f"! {error}")


def _prompt(waiting: list[Any]) -> str:
    videos = sum(isinstance(medium, Video) for medium in waiting)
    counts = {"image": len(waiting) - videos, "video": videos}
    declared = ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts.items() if n)
    return f"you ({declared}): " if declared else "you: "


def _turn(session: ChatSession, line: str, waiting: list[Any]) -> list[Any]:
    """Carry out one line; returns the images that wait for the next question."""
    command, _, rest = line.partition(" ")
    if not line:
        return waiting
    if command == "/image":
        return [*waiting, _image(session, rest)]
    if command == "/video":
        return [*waiting, session.read(Video(_path(rest, "/video cat.mp4")))]
    if line.startswith(CHANGE):
        path = _image(session, line.removeprefix(CHANGE))
        session.reset()
        return [path]
    if line == "clear":
        shown = [medium for message in session.messages for medium in message.media]
        session.reset()
        return shown or waiting
    if command == "/reset":
        session.reset()
        return []
    if command == "/again":
        session.regenerate()
        _write(session)
    elif line.startswith("/"):
        say(HELP if command == "/help" else f"! unknown command {command}\n{HELP}")
    else:
        session.ask(line, waiting)
        _write(session)
        return []
    return waiting


def _image(session: ChatSession, text: str) -> str:
    """The path of an image. Raises UserError now if it cannot be read."""
    path = _path(text, "/image cat.jpg")
    session.engine.processor.image(path, path)
    return path


def _path(text: str, example: str) -> str:
    """The path after a command, without quotes. Raises UserError: none, with the example."""
    path = text.strip().strip("'\"")
    if not path:
        raise UserError(f"{example.split()[0]} needs the path of a file", fix=f"e.g. {example}")
    return path


def _write(session: ChatSession) -> None:
    """Stream one answer to the terminal; Ctrl-C stops it and keeps what was written."""
    say("model: ", end="")
    stream = session.stream()
    try:
        for delta in stream:
            say(("\nmodel: " if delta.is_restart else "") + delta, end="")
    except KeyboardInterrupt:
        stream.close()
        say(" [stopped]", end="")
    say("\n")
