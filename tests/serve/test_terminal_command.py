"""The command ``vlm chat`` itself at a pseudo-terminal, twice, each in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("pty", reason="a system without pseudo-terminals")
pytest.importorskip("readline", reason="Python without readline")

from ..inference.small import CASE, write_config
from .pseudo_terminal import PseudoTerminal, plain


@pytest.mark.heavy
def test_the_command_remembers_what_was_typed(tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    command = [sys.executable, "-m", "vlm.cli", "chat", config, "--image", str(CASE / "image.png"), "--greedy"]

    def program() -> int:
        os.execv(sys.executable, [*command, "--max-new-tokens", "6"])

    answers = []
    for keys in ("What is this?\n", "\x1b[A\n"):
        terminal = PseudoTerminal(program, {"VLM_STATE": str(tmp_path / "state"), "TERM_PROGRAM": "iTerm.app"})
        try:
            head = terminal.until("you (1 image): ", within=120)
            assert b"/image PATH" in head and b"\x1b]1337;File=inline=1" in head
            terminal.type(keys)
            terminal.until("model: ")
            answers.append(plain(terminal.until("you: ")))
            terminal.type("\x04")
            assert terminal.end() == 0
        finally:
            terminal.close()
    first, second = (answer.split("\n")[0] for answer in answers)
    assert first == second != "" and "tokens/s, first after" in answers[0]
