"""A conversation in the terminal, or questions asked once from a script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm.common.errors import UserError, printable
from vlm.common.logging import say
from vlm.serve.terminal.commands import HELP, carry_out
from vlm.serve.terminal.inline import Inline, Shower
from vlm.serve.terminal.lines import Lines
from vlm.serve.terminal.screen import is_interactive
from vlm.serve.terminal.state import Talk

if TYPE_CHECKING:
    from vlm.inference.session import ChatSession


def once(session: ChatSession, questions: list[str], images: list[Any]) -> int:
    """Ask the questions one after another, images and videos with the first; print one answer per line."""
    for number, question in enumerate(questions):
        session.ask(question, images if number == 0 else ())
        say(printable(session.answer()))
    return 0


def talk(
    session: ChatSession,
    images: list[Any],
    *,
    inline: Inline = Inline.OFF,
    history: bool = False,
    speed: bool = False,
) -> int:
    """Read questions until the user exits.

    Args:
        session: the conversation.
        images: images and videos of the first question.
        inline: how images are shown in the terminal.
        history: keep what is typed for the next time; only at a terminal, as ``speed``.
        speed: tell the speed after each answer.
    """
    interactive = is_interactive()
    mine = Talk(session, list(images), Shower(inline if interactive else Inline.OFF), speed and interactive)
    lines = Lines(interactive, history)
    say(HELP + "\n")
    for medium in images:
        mine.shower.show(medium)
    while True:
        try:
            line = lines.read(mine.prompt)
        except EOFError:
            say()
            return 0
        except KeyboardInterrupt:
            say()
            continue
        try:
            if not carry_out(mine, line):
                return 0
        except UserError as error:
            session.take_back()
            say(f"! {error}")
        except KeyboardInterrupt:  # while something other than an answer was going on
            session.take_back()
            say(" [stopped]\n")
