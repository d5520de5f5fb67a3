"""What a file that somebody sent may do: name what is registered, and nothing else.

Importing a module that a configuration names, running a ``pipe:`` command and reading the environment need trust. It is
given by ``--trust`` or ``trust=True``, to a file that ``vlm train`` is told to train with, and to the run folders that
this user trained on this machine. The last are known by small files under :func:`state_root`, one for each folder and
content of its ``config.yaml``: nothing in a folder can claim trust, and a folder that was moved or whose configuration
was changed has lost it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from vlm.common.errors import ConfigError
from vlm.common.files import read_regular

log = logging.getLogger(__name__)

STATE_VARIABLE = "VLM_STATE"
MAX_CONFIG = 1 << 24
"""Bytes of a ``config.yaml`` that can be one of ours; a device or a FIFO never is."""

_given: ContextVar[bool] = ContextVar("trust", default=False)


@contextlib.contextmanager
def trusting(given: bool = True) -> Iterator[None]:
    """Inside, configurations are trusted if ``given``, or if they were outside."""
    token = _given.set(given or _given.get())
    try:
        yield
    finally:
        _given.reset(token)


def is_given() -> bool:
    """Whether the configuration that is being read is trusted."""
    return _given.get()


def refused(what: str, would: str) -> ConfigError:
    """The error about something that needs trust: ``what`` was found, and what it ``would`` do."""
    return ConfigError(f"{what} would {would}: only with --trust (Python: trust=True), if you know who wrote this")


def state_root() -> Path:
    """Folder of what this user's runs leave on this machine outside their own folders; not created here.

    Environment variable ``VLM_STATE``, else ``$XDG_STATE_HOME/vlm``, else ``~/.local/state/vlm``.
    """
    if own := os.environ.get(STATE_VARIABLE):
        return Path(own).expanduser()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".local" / "state") / "vlm"


def remember(folder: Path, config_text: str) -> None:
    """Note that this user trained ``folder`` with this configuration. Where nothing can be written, a warning."""
    file = _note(folder, config_text.encode("utf-8"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.write_text(f"{folder.resolve()}\n", encoding="utf-8")
    except OSError as error:
        log.warning("%s cannot be written (%s): this run folder will need --trust", file, error.strerror)


def was_trained_here(config: Path) -> bool:
    """Whether ``config`` is what a run of this user wrote into its folder, or into one of its checkpoints."""
    try:
        content = read_regular(config, MAX_CONFIG)
    except (OSError, ValueError):
        return False
    folders = [config.resolve().parent, *config.resolve().parents[2:3]]  # of the run, of checkpoints/step_...
    return any(_note(folder, content).is_file() for folder in folders)


def _note(folder: Path, content: bytes) -> Path:
    name = os.fsencode(folder.resolve()) + b"\0" + content
    return state_root() / "trained" / hashlib.sha256(name).hexdigest()
