"""What may be typed besides questions."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vlm.common.dist import peak_memory_mib
from vlm.common.errors import PromptError, UserError, printable
from vlm.common.logging import say
from vlm.common.types import Message, Video
from vlm.pages.conversation import markdown, numbers, page
from vlm.serve.terminal.screen import is_interactive
from vlm.serve.terminal.state import Talk

CHANGE = "change image:"
SUFFIXES = (".json", ".md", ".html")
"""Files that ``/save`` writes."""
MIB = 2**20


@dataclass(frozen=True)
class Command:
    """A command: what follows it, what it is for, and what it does with what followed."""

    argument: str
    about: str
    run: Callable[[Talk, str], None]
    takes_path: bool = False


def carry_out(talk: Talk, line: str) -> bool:
    """Carry out one line; whether the conversation goes on. Raises UserError: it cannot be done, and nothing was."""
    line = line.strip()
    name, _, rest = line.partition(" ")
    if line in ("/quit", "/exit", "exit"):
        return False
    if line.startswith(CHANGE):
        path = _image(talk, line.removeprefix(CHANGE))
        talk.start_over([path])
        talk.shower.show(path)
    elif line == "clear":
        shown = [medium for message in talk.session.messages for medium in message.media]
        talk.start_over(shown or talk.waiting)
    elif name in COMMANDS:
        COMMANDS[name].run(talk, rest.strip())
    elif line.startswith("/"):
        say(f"! unknown command {printable(name)}\n{HELP}")
    elif line:
        talk.ask(line)
    return True


def _image(talk: Talk, text: str) -> str:
    """The path of an image. Raises UserError now if it cannot be read."""
    path = _path(text, "/image cat.jpg")
    talk.session.engine.processor.image(path, path)
    return path


def _path(text: str, example: str) -> str:
    """The path after a command, without quotes, or as a shell writes it (``my\\ cat.jpg``) and file managers drop it.

    Raises UserError: none, with the example.
    """
    text = text.strip()
    path = text.strip("'\"")
    if not path:
        raise UserError(f"{example.split()[0]} needs the path of a file", fix=f"e.g. {example}")
    if "\\" in path and not Path(path).exists():
        try:
            words = shlex.split(text)
        except ValueError:  # a quotation that does not end
            words = []
        path = words[0] if len(words) == 1 else path
    return str(Path(path).expanduser()) if path.startswith("~") else path


def add_image(talk: Talk, rest: str) -> None:
    """``/image PATH``."""
    path = _image(talk, rest)
    talk.waiting = [*talk.waiting, path]
    talk.shower.show(path)


def add_video(talk: Talk, rest: str) -> None:
    """``/video PATH``."""
    video = Video(_path(rest, "/video cat.mp4"))
    talk.waiting = [*talk.waiting, talk.session.read(video)]
    talk.shower.show(video)


def retry(talk: Talk, _: str) -> None:
    """``/retry``."""
    options = talk.session.generation
    fixed = "sampling is off" if not options.do_sample else "the seed is fixed" if options.seed is not None else ""
    if fixed and is_interactive() and talk.session.last is not None:
        say(f"({fixed}: the same answer will come again)")
    talk.retry()


def undo(talk: Talk, _: str) -> None:
    """``/undo``."""
    say(f"taken back: {printable(talk.undo().text)}\n")


def system(talk: Talk, text: str) -> None:
    """``/system TEXT``."""
    session = talk.session
    if text:
        session.engine.text([Message("system", text), Message("user", "?")])  # a template may have no place for it
    session.system = text or None
    say("from now on the model reads this text first\n" if text else "the template's own text is used again\n")


def save(talk: Talk, rest: str) -> None:
    """``/save FILE``."""
    file = Path(_path(rest, "/save talk.json")).expanduser()
    session = talk.session
    if not session.messages:
        raise PromptError("there is nothing to save", fix="ask first")
    title = "/".join(session.engine.name) or " -> ".join(session.engine.composition)
    if file.suffix == ".json":
        text = session.to_json(model=title)
    elif file.suffix == ".md":
        text = markdown(session, title)
    elif file.suffix == ".html":
        text = page(session, title)
    else:
        raise UserError(f"/save {file}: what to write is told by the suffix", fix=f"one of {', '.join(SUFFIXES)}")
    try:
        with file.open("x", encoding="utf-8", errors="backslashreplace") as out:
            out.write(text)
    except FileExistsError:
        raise UserError(f"/save {file}: this file exists and is not replaced", fix="name another file") from None
    except OSError as error:
        raise UserError(f"/save {file}: cannot be written ({error.strerror})", fix="name another file") from error
    say(f"saved to {printable(str(file))}\n")


def stats(talk: Talk, _: str) -> None:
    """``/stats``."""
    session = talk.session
    engine, record = session.engine, session.last
    counts = engine.stats()
    held = {"images": counts.feature_bytes, "prompts": counts.prefix_bytes, "answers": counts.kv_bytes}
    lines = {"last answer": numbers(record) or "none yet"}
    if record is not None:
        total = engine.positions
        share = f" of {total} ({record.positions / total:.0%})" if total else ""
        lines["context"] = f"{record.positions} positions{share}"
        lines["cached"] = f"{record.cached} of {record.prompt} positions of the prompt"
    lines["kept"] = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in held.items())
    lines["memory"] = f"{peak_memory_mib(engine.device):,.0f} MiB at most so far"
    say("\n".join(f"  {name:<12} {value}" for name, value in lines.items()) + "\n")


COMMANDS: dict[str, Command] = {
    "/image": Command("PATH", "add an image to the next question", add_image, takes_path=True),
    "/video": Command("PATH", "add a video (a file, or a folder of its frames)", add_video, takes_path=True),
    "/retry": Command("", "answer the last question again (also: /again)", retry),
    "/undo": Command("", "take back the last question and its answer", undo),
    "/system": Command("TEXT", "what the model reads first; without TEXT: the template's own", system),
    "/reset": Command("", "start over: forget images and history", lambda talk, _: talk.start_over([])),
    "/save": Command("FILE", "write the conversation as .json, .md or .html", save, takes_path=True),
    "/stats": Command("", "speed, share of the context, memory", stats),
    "/help": Command("", "this text", lambda talk, _: say(HELP)),
    "/again": Command("", "", retry),
}


def _help() -> str:
    listed = {f"{name} {command.argument}".strip(): command.about for name, command in COMMANDS.items()}
    listed["/quit"] = "exit (or Ctrl-D); Ctrl-C stops an answer"
    lines = [f"  {name:<13} {about}" for name, about in listed.items() if about]
    return "\n".join([HEAD, *lines, PUBLISHED])


HEAD = 'Type a question and press Enter; end a line with \\ to go on in the next, or begin and end with """. Commands:'
PUBLISHED = (
    "Also understood: `change image:PATH` (start over with that image), `clear` (start over with the same one), `exit`"
)
HELP: str = _help()


def names() -> list[str]:
    """The commands, for completion."""
    return [*COMMANDS, "/quit"]


def path_after(line: str) -> str | None:
    """What of a line is the beginning of a path, or None."""
    if line.startswith(CHANGE):
        return line.removeprefix(CHANGE)
    name, blank, rest = line.partition(" ")
    return rest.lstrip() if blank and name in COMMANDS and COMMANDS[name].takes_path else None
