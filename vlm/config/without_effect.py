"""Keys of published files that are accepted although they change nothing here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache

from vlm.common.paths import SYSTEMS
from vlm.config.composition import Arch
from vlm.config.options import Option
from vlm.config.run import NO_EFFECT
from vlm.config.schema import Path, dotted
from vlm.config.tree import Tree, parse_file

log = logging.getLogger(__name__)

SAYS_SO = "no effect"
"""How the help of a parameter of a composition begins that changes nothing."""


@cache
def undeclared() -> Mapping[str, str]:
    """Dotted path -> why, of keys that nothing declares."""
    return parse_file(SYSTEMS / "without_effect.yaml").data


def take_out(user: Tree, options: Sequence[Option]) -> tuple[dict[str, str], list[Option]]:
    """Remove the undeclared keys from ``user``; returns those found, each with its reason, and the other options."""
    found: dict[str, str] = {}
    for path, why in undeclared().items():
        *head, last = path.split(".")
        section = user.get(tuple(head), {}) if head else user.data
        if isinstance(section, dict) and last in section:
            del section[last]
            found[path] = why
    kept = []
    for option in options:
        names = [p for p in undeclared() if f"{dotted(option.path)}.".startswith(f"{p}.")]
        found |= {name: undeclared()[name] for name in names}
        kept += [] if names else [option]
    return found, kept


def declared(user: Tree, options: Sequence[Option], arch: Arch | None) -> dict[str, str]:
    """The keys that were written although their own help says that they change nothing; each with that help."""
    written: set[Path] = {(section, key) for section in ("model", "run") for key in user.get((section,), {}) or {}}
    written |= {option.path[:2] for option in options}
    helps = {("run", key): why for key, why in NO_EFFECT.items()}
    if arch is not None:
        helps |= {("model", n): p.help for n, p in arch.params.items() if p.help.startswith(SAYS_SO)}
    cut = f"{SAYS_SO}; "
    return {dotted(path): why.removeprefix(cut) for path, why in helps.items() if path in written}


def tell(found: Mapping[str, str], title: str) -> None:
    """One warning that names the keys."""
    if found:
        log.warning("%s: without effect here: %s (vlm config check says why)", title, ", ".join(sorted(found)))
