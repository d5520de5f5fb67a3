"""Lines that somebody types: editing, completion, several lines as one question, and what was typed before."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vlm.common.files import read_regular
from vlm.common.logging import say
from vlm.common.trust import state_root
from vlm.serve.terminal.commands import names, path_after

KEPT = 1000
"""Lines that are read from the history file, and left in it when it is shortened."""
LONGEST = 10_000
"""Characters of a line that is kept."""
LARGEST = 2**20
"""Bytes of the history file, which is shortened to half of them at most."""
MORE = "...  "
"""Prompt of a further line of the same question."""
QUOTES = '"""'


def history_file() -> Path:
    """Where what was typed is kept: ``chat_history`` in the folder of this user's state."""
    return state_root() / "chat_history"


class Lines:
    """Reads what is typed; at a terminal with editing keys, if Python has readline."""

    def __init__(self, interactive: bool, history: bool) -> None:
        """``history``: what was typed in earlier conversations can be had again, and this is added to it."""
        self.interactive = interactive
        self._prompt = ""
        self._readline = _readline() if interactive else None
        self._file = history_file() if history and self._readline is not None else None
        if self._readline is not None:
            _set_up(self._readline, self._display)
            for line in read_history(self._file) if self._file is not None else ():
                self._readline.add_history(line)

    def read(self, prompt: str) -> str:
        """A line, or several that belong together. Raises EOFError and KeyboardInterrupt."""
        line = self._line(prompt)
        if not self.interactive:
            return line
        typed = line
        if line.lstrip().startswith(QUOTES):
            text = line.lstrip().removeprefix(QUOTES)
            while QUOTES not in text:
                text += "\n" + self._line(MORE)
            typed = text.partition(QUOTES)[0].strip("\n")
        elif line.endswith("\\"):
            parts = [line]
            while parts[-1].endswith("\\"):
                parts[-1] = parts[-1][:-1]
                parts.append(self._line(MORE))
            typed = "\n".join(parts)
        self._remember(typed)
        return typed

    def _line(self, prompt: str) -> str:
        self._prompt = prompt
        return input(prompt)

    def _remember(self, line: str) -> None:
        """Keep a line for later; not one that begins with a blank."""
        if self._readline is None or not line.strip() or line.startswith(" "):
            return
        self._readline.add_history(line)
        if self._file is not None and len(line) <= LONGEST:
            try:
                append_history(self._file, line)
            except OSError as error:
                say(f"! {self._file} cannot be written ({error.strerror}): what is typed is not kept")
                self._file = None

    def _display(self, _: str, matches: Sequence[str], __: int) -> None:
        """Show what a line may become, and the line again; of paths their last part."""
        commands = names()
        shown = [m if m.strip() in commands else m[m.rstrip("/").rfind("/") + 1 :] for m in matches]
        buffer = self._readline.get_line_buffer() if self._readline is not None else ""
        say("\n" + "  ".join(sorted(set(shown))[:100]))
        say(self._prompt + buffer, end="")


def _readline() -> ModuleType | None:
    """Python's readline, where it was built with it."""
    try:
        import readline
    except ImportError:
        return None
    return readline


def _set_up(readline: Any, display: Callable[[str, Sequence[str], int], None]) -> None:
    """Editing keys, and completion of commands and paths."""
    readline.set_auto_history(False)
    readline.clear_history()
    readline.set_completer_delims(" \t\n")
    found: list[str] = []

    def complete(_: str, state: int) -> str | None:
        if state == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            found[:] = completions(line, readline.get_begidx())
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    if "libedit" in (readline.__doc__ or ""):
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        readline.set_completion_display_matches_hook(display)


def completions(line: str, start: int) -> list[str]:
    """What may be in place of ``line[start:]``: commands at the beginning of a line, paths after some of them."""
    path = path_after(line)
    if path is None:
        return [f"{name} " for name in names() if name.startswith(line)] if line.startswith("/") else []
    quote = path[:1] if path[:1] in ("'", '"') else ""
    typed = path.removeprefix(quote)
    head, _, tail = typed.rpartition("/")
    folder = Path(f"{head}/" if "/" in typed else ".").expanduser()
    done = line[: len(line) - len(tail)]
    return [(done + name)[start:] for name in sorted(_names(folder)) if name.startswith(tail)]


def _names(folder: Path) -> Iterator[str]:
    """The files and, with a slash, the folders in a folder; hidden ones are left out."""
    with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.isprintable():
                yield entry.name + "/" * entry.is_dir()


def read_history(file: Path) -> list[str]:
    """The newest lines that were kept; nothing where the file cannot be read."""
    try:
        rows = read_regular(file, 2 * LARGEST).splitlines()[-KEPT:]
    except (OSError, ValueError):
        return []
    result = []
    for row in rows:
        with contextlib.suppress(ValueError):
            if isinstance(line := json.loads(row), str):
                result.append(line)
    return result


def append_history(file: Path, line: str) -> None:
    """Keep a line, in a file that this user alone can read. Raises OSError: it cannot be written."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    no_wait = os.O_NONBLOCK if hasattr(os, "O_NONBLOCK") else 0  # a FIFO without a reader would block
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | no_wait, 0o600), "ab") as out:
        is_file = stat.S_ISREG(os.fstat(out.fileno()).st_mode)
        if is_file and hasattr(os, "fchmod"):
            os.fchmod(out.fileno(), 0o600)
        out.write(json.dumps(line).encode("ascii") + b"\n")
        out.flush()
        size = os.fstat(out.fileno()).st_size
    if is_file and size > LARGEST:
        _shorten(file)


def _shorten(file: Path) -> None:
    """Leave the newest lines only."""
    kept: list[bytes] = []
    size = 0
    for row in reversed(file.read_bytes().splitlines(keepends=True)[-KEPT:]):
        size += len(row)
        if size > LARGEST // 2:
            break
        kept.append(row)
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.writelines(reversed(kept))
    os.replace(fresh, file)
