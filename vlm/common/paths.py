"""The one place that turns a name into a file: local paths and http(s) URLs, through iopath.

Downloads and other reusable files live under one cache root: environment variable ``VLM_CACHE``, else
``$XDG_CACHE_HOME/vlm``, else ``~/.cache/vlm``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vlm.common.errors import UserError

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SYSTEMS = Path(__file__).resolve().parents[1] / "systems"
CORPORA = Path(__file__).resolve().parents[1] / "datasets" / "corpora"
_HOME = re.compile(r"~[\w.-]*/")
CACHE_VARIABLE = "VLM_CACHE"


def cache_root() -> Path:
    """Folder of downloads and caches; not created here."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "vlm"


def is_url(path: str | Path) -> bool:
    """Whether ``path`` is an http(s) address."""
    return str(path).lower().startswith(("http://", "https://"))


def exists(path: str | Path) -> bool:
    """Whether a local file or folder is there; a URL counts as there (it is fetched when it is read)."""
    return is_url(path) or os.path.exists(os.path.expanduser(path))  # False for names that no file can have


def local_path(path: str | Path) -> Path:
    """The local file or folder of ``path``; a URL is downloaded once into the cache."""
    if not is_url(path):
        return Path(path).expanduser()
    from iopath.common.file_io import HTTPURLHandler, PathManager

    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    scheme, rest = str(path).split("://", 1)  # the handler knows lower case only
    folder = _download_folder(path)
    return Path(manager.get_local_path(f"{scheme.lower()}://{rest}", cache_dir=str(folder)))


def _download_folder(path: str | Path) -> Path:
    """Where what an address names is kept: by host, so that no other can leave a file under the name of this one."""
    host = re.sub(r"[^\w.-]", "_", urlsplit(str(path)).netloc).strip(".")
    if not host or ".." in str(path).split("://", 1)[1].split("?")[0].split("/"):  # it would be outside of this folder
        raise UserError(f"{path}: not an address of a file", fix="give a plain address, without .. in it")
    return cache_root() / "downloads" / host


def downloaded(path: str) -> Path | None:
    """The file that :func:`local_path` has downloaded from this address already, or None; nothing is fetched."""
    file = _download_folder(path) / urlsplit(path).path.lstrip("/")
    return file if file.is_file() else None


def expand_home(value: Any) -> Any:
    """``value`` with every text and path in it that begins with ``~/`` or ``~user/`` starting at the home folder.

    The one place where configurations and command lines are expanded; mappings, lists and tuples are followed.
    """
    if isinstance(value, dict):
        return {key: expand_home(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(expand_home(item) for item in value)
    if isinstance(value, str | Path) and _HOME.match(str(value)):
        return type(value)(os.path.expanduser(value))
    return value


def make_folder(path: str | Path) -> Path:
    """The folder, made if missing. Raises UserError: it cannot be made."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {path} cannot be made ({error.strerror})", fix="name another output folder") from error
    return Path(path)


def inner_folder(path: str | Path, names: Sequence[str]) -> Path:
    """The first of ``names`` that is a folder in ``path``, else ``path``: one part of a model saved in parts."""
    folder = Path(path).expanduser()
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def asset(name: str) -> str:
    """Path of a file or folder that ships with the package, e.g. ``asset("tiny/llm")``."""
    return str(ASSETS / name)
