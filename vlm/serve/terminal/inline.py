"""Images shown within the terminal: kitty's graphics protocol, iTerm2's inline images, sixel."""

from __future__ import annotations

import base64
import enum
import os
from collections.abc import Mapping
from typing import Any

from vlm.common.errors import DataError
from vlm.common.logging import say
from vlm.common.types import Image, Video
from vlm.processors.image.decode import as_png
from vlm.processors.image.sixel import as_sixel
from vlm.processors.video.read import first_frame
from vlm.serve.terminal.screen import attributes, size_in_pixels

LARGEST = (480, 320)
"""Width and height of a shown image in pixels at most; it is scaled down before it is sent."""
CHUNK = 4096
"""Most characters of base64 in one command of kitty's protocol."""
SIXEL = 4
"""Device attribute of a terminal that shows sixel images."""


class Inline(str, enum.Enum):
    """How images are shown."""

    AUTO = "auto"
    KITTY = "kitty"
    ITERM = "iterm"
    SIXEL = "sixel"
    OFF = "off"


class Shower:
    """Shows images and the first frames of videos, where the terminal can."""

    def __init__(self, inline: Inline) -> None:
        """``inline``: AUTO asks the environment, and the terminal itself when the first image comes."""
        self.inline = inline

    def show(self, medium: Any) -> None:
        """Show a path, ``Image`` or ``Video``; nothing where it cannot be decoded, which the question will tell."""
        if self.inline is Inline.AUTO:
            self.inline = detected(os.environ) or (Inline.SIXEL if SIXEL in attributes() else Inline.OFF)
        if self.inline is Inline.OFF:
            return
        try:
            source = first_frame(medium.source) if isinstance(medium, Video) else medium
            say(encoded(source.source if isinstance(source, Image) else source, self.inline, size_for_image()))
        except DataError:
            return


def detected(environ: Mapping[str, str]) -> Inline | None:
    """What a terminal shows according to its environment; None: the environment does not say."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if term == "dumb":
        return Inline.OFF
    if environ.get("TMUX") or term.startswith(("screen", "tmux")):
        return None  # it is between the two, and answers for itself whether it hands sixel images on
    if environ.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return Inline.KITTY
    if program in ("iTerm.app", "WezTerm", "mintty") or environ.get("LC_TERMINAL") == "iTerm2":
        return Inline.ITERM
    return None


def size_for_image() -> tuple[int, int]:
    """Width and height that an image may take: at most half of a terminal's height."""
    width, height = size_in_pixels() or LARGEST
    return min(width, LARGEST[0]), min(max(height // 2, 16), LARGEST[1])


def encoded(source: Any, inline: Inline, size: tuple[int, int]) -> str:
    """What a terminal shows as the image. Raises DataError: it cannot be read."""
    if inline is Inline.SIXEL:
        return as_sixel(source, size)
    data = as_png(source, size=size)
    return kitty(data) if inline is Inline.KITTY else iterm(data)


def kitty(png: bytes) -> str:
    """A PNG in kitty's protocol: in chunks, and without an answer by the terminal, which would be read as typed."""
    text = base64.b64encode(png).decode("ascii")
    chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    result = []
    for number, chunk in enumerate(chunks):
        first = "a=T,f=100,q=2," if number == 0 else ""
        result.append(f"\x1b_G{first}m={int(number < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(result)


def iterm(png: bytes) -> str:
    """A PNG in iTerm2's protocol, which other terminals have, too."""
    text = base64.b64encode(png).decode("ascii")
    return f"\x1b]1337;File=inline=1;size={len(png)};preserveAspectRatio=1:{text}\x07"
