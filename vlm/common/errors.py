"""Errors that are the user's to fix: one clear message, no traceback.

Entry points catch :class:`UserError` only; anything else is a bug in the library
and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""A terminal obeys these; line feeds and tabs stay."""


class UserError(Exception):
    """A fault in the user's input. The message names what was found, what is allowed and the fix."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        text = message if fix is None else f"{message}\n  fix: {fix}"
        super().__init__(printable(text))


class ConfigError(UserError):
    """One or more problems in a configuration, reported together."""


class WeightsError(UserError):
    """A weight file that is unreadable, unsafe, or does not fit the composition."""


class DataError(UserError):
    """A dataset, record, image or video that cannot be used."""


class PromptError(UserError):
    """The placeholders and the images or videos of a prompt do not match."""


class NotFiniteError(UserError):
    """A part of the model computed values that are not numbers, so that there is no answer, rank or loss."""


class BusyError(UserError):
    """An engine has as many questions waiting as it takes; ``retry_after`` says in how many seconds to ask again."""

    def __init__(self, message: str, *, retry_after: float = 1.0, fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.retry_after = retry_after


class NonFiniteLossError(UserError):
    """The loss stopped being a number before an optimiser step."""


def printable(text: str) -> str:
    """``text`` with lone surrogates and control characters (of damaged JSON, or file names) written out as escapes."""
    text = text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def unknown(what: str, name: str, allowed: Sequence[str]) -> str:
    """The one wording for every unknown name."""
    return f"unknown {what} {name!r:.200}{nearest(name[:200], allowed)}"


def nearest(name: str, allowed: Sequence[str]) -> str:
    """The part of a message that proposes names: ``"; did you mean 'depth'? (allowed: ...)"``."""
    near = get_close_matches(name, allowed, n=2)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"{hint} (allowed: {', '.join(sorted(allowed)) or 'none'})"
