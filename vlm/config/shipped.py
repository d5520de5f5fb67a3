"""What the package ships by name: compositions, run files, corpora; and the names that they had before.

``systems/<arch>/<model_type>.yaml`` is a composition; ``systems/<system>/train/<name>.yaml`` and
``systems/<system>/eval/<name>.yaml`` are run files. Commands and ``load_config`` call each ``<system>/<name>``.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from vlm.common.errors import ConfigError, nearest
from vlm.common.paths import CORPORA, SYSTEMS
from vlm.config.tree import parse_file

FOLDERS = {True: ("train", "eval", ""), False: ("eval", "", "train")}
"""Folders of a system searched for a name, in order; True: to train. The empty one holds the compositions."""


def archs() -> list[str]:
    """Compositions as ``arch/model_type``."""
    return _names("*/*.yaml")


def run_files() -> list[str]:
    """Run files as ``system/train/name`` and ``system/eval/name``."""
    return sorted([*_names("*/train/*.yaml"), *_names("*/eval/*.yaml")])


def _names(pattern: str) -> list[str]:
    return sorted(f.relative_to(SYSTEMS).with_suffix("").as_posix() for f in SYSTEMS.glob(pattern))


@cache
def corpora() -> list[str]:
    """Names of the corpora."""
    return sorted(f.stem for f in CORPORA.glob("*.yaml"))


def corpus_file(name: str) -> Path | None:
    """The defaults of a corpus, if it ships; under its earlier name too."""
    file = CORPORA / f"{current_name('corpus', name)[1]}.yaml"
    return file if file.is_file() else None


def label(file: Path) -> str:
    """How messages name a file: relative to the package, if it is in it."""
    package = SYSTEMS.parent
    return str("vlm" / file.relative_to(package)) if file.is_relative_to(package) else str(file)


@cache
def _aliases() -> dict[str, str]:
    return parse_file(SYSTEMS / "aliases.yaml").data


def current_name(arch: Any, model_type: Any) -> tuple[Any, Any]:
    """Arch and model_type by the names that they have today; what has no other name comes back as it is."""
    for old, new in _aliases().items():
        old_arch, old_type = old.split("/")
        if arch == old_arch and old_type in ("*", model_type):
            arch, new_type = new.split("/")
            model_type = model_type if new_type == "*" else new_type
    return arch, model_type


def find(name: str, train: bool = False) -> Path:
    """The file called ``system/name`` (or ``system/train/name``): a run file or a composition.

    With ``train`` a run file for training comes first; else one for evaluation and chat, then the composition.

    Raises:
        ConfigError: neither a file nor the name of anything shipped.
    """
    system, rest = current_name(*name.split("/", 1)) if re.fullmatch(r"[\w-]+/[\w/-]+", name) else ("", "")
    for folder in FOLDERS[train]:
        file = SYSTEMS / system / folder / f"{rest}.yaml"
        if file.is_file():
            return file
    known = sorted({(n.split("/")[0], n.split("/")[-1]) for n in [*run_files(), *archs()]})
    if system not in dict(known):
        systems = ", ".join(f"{s}/..." for s in dict(known))
        raise ConfigError(f"configuration {name!r}: no such file or folder", fix=f"or name one that ships: {systems}")
    options = [f"{s}/{n}" for s, n in known if s == system]
    raise ConfigError(f"configuration {name!r}: unknown name{nearest(f'{system}/{rest}', options)}")


def is_composition(file: Path) -> bool:
    """Whether a file found by :func:`find` is a composition (not a run file)."""
    return file.parent.parent == SYSTEMS
