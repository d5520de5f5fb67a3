"""``--options`` in both published spellings, with YAML-special text kept unchanged."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from vlm.common.errors import ConfigError
from vlm.config.schema import Path, Report
from vlm.config.tree import MAX_DEPTH, OPTIONS, Tree, parse_scalar, parse_value

GLOB_MAPS: tuple[Path, ...] = (("model", "train"), ("run", "lr_scale"))
"""Mappings whose keys may hold dots: what follows is one key."""


@dataclass(frozen=True)
class Option:
    """One override.

    Attributes:
        path: where.
        value: typed.
        text: as given on a command line; None: it was written in a file.
        origin: ``file:line``; empty: ``--options``.
        whole: a mapping replaces the one that is there, instead of being merged into it.
    """

    path: Path
    value: Any
    text: str | None = None
    origin: str = ""
    whole: bool = False

    @property
    def place(self) -> str:
        """Where it was given, for messages."""
        return self.origin or f"{OPTIONS} {'.'.join(map(str, self.path))}"


def parse_options(items: Sequence[str] | Sequence[Option]) -> list[Option]:
    """``["a.b=c", "d.e=f"]`` or ``["a.b", "c", "d.e", "f"]`` (which: decided by the first item).

    Options that were read elsewhere come back as they are.

    Raises ConfigError: an item without ``=`` in the first spelling, an odd count in the second.
    """
    if not items:
        return []
    if all(isinstance(item, Option) for item in items):
        return [item for item in items if isinstance(item, Option)]
    if isinstance(items, str | Mapping) or not all(isinstance(item, str) for item in items):
        raise ConfigError(f"options: found {items!r:.80}, expected a list of strings", fix='e.g. ["run.seed=1"]')
    texts = [str(item) for item in items]
    if "=" in texts[0]:
        pairs = []
        for item in texts:
            key, equals, text = item.partition("=")
            if not equals:
                raise ConfigError(f"{OPTIONS} {item!r}: expected KEY=VALUE", fix="quote a value that holds spaces")
            pairs.append((key, text))
    else:
        if len(texts) % 2:
            raise ConfigError(f"{OPTIONS}: {texts[-1]!r} has no value", fix="write KEY=VALUE, or KEY VALUE pairs")
        pairs = list(zip(texts[::2], texts[1::2]))
    return [Option(to_path(key), typed(text), text) for key, text in pairs]


def write_options(sections: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``{"run": {"init_lr": 1e-4}}`` -> ``["run.init_lr=0.0001"]``, which :func:`parse_options` reads back.

    Raises ConfigError: a value that YAML cannot hold.
    """
    items: list[str] = []
    for key, value in sections.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            items += write_options(value, f"{path}.")
            continue
        try:
            text = repr(value) if isinstance(value, float) else json.dumps(value, default=os.fspath)
            items.append(f"{path}={text}")
        except TypeError as error:
            raise ConfigError(f"{path}: {value!r} is not a value that a YAML file can hold") from error
    return items


def to_path(key: str) -> Path:
    """``"model.bridge.0.depth"`` -> ``("model", "bridge", 0, "depth")``. Raises ConfigError: an empty part."""
    parts = key.strip().split(".")
    if not all(parts):
        raise ConfigError(f"{OPTIONS} {key!r}: expected a dotted path such as run.init_lr")
    for head in GLOB_MAPS:
        if tuple(parts[: len(head)]) == head and len(parts) > len(head):
            return (*head, ".".join(parts[len(head) :]))
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"{OPTIONS} {key!r:.60}: more than {MAX_DEPTH} parts")
    return tuple(int(p) if p.isascii() and p.isdigit() and len(p) < 10 and i else p for i, p in enumerate(parts))


def typed(text: str) -> Any:
    """Numbers, booleans, null, ``[...]``, ``{...}`` and quoted text as YAML reads them; all else is text.

    So ``###`` (a YAML comment), ``[INST] {} [/INST] `` and ``a: b`` stay strings.
    """
    if text[:1] in ("[", "{", '"', "'") and text[:1] + text.rstrip()[-1:] in ("[]", "{}", '""', "''"):
        return parse_value(text)
    return parse_scalar(text)


def value_of(options: Sequence[Option], path: Path, default: Any) -> Any:
    """What the last option for exactly ``path`` says, or ``default``."""
    return next((o.value for o in reversed(options) if o.path == path), default)


def apply_options(
    tree: Tree, options: Sequence[Option], report: Report, renamed: Mapping[Path, str] = MappingProxyType({})
) -> None:
    """Write the options into the tree; a mapping given as value merges like one in a file."""
    for value in options:
        option = replace(value, path=tree.real(value.path))
        origin = option.place
        try:
            if isinstance(option.value, dict) and isinstance(tree.get(option.path), dict) and not option.whole:
                over = Tree(option.value, {(): origin, **{(k,): origin for k in option.value}})
                tree.merge(over, option.path)
                tree.texts.update({} if option.text is None else {option.path: option.text})
            else:
                part = option.path[:-1]
                target = tree.get(part)
                swaps = option.path[-1] == "name" and part in renamed
                if swaps and isinstance(target, dict) and target.get("name", renamed[part]) != option.value:
                    tree.put(part, {}, origin)
                tree.put(option.path, option.value, origin, option.text)
        except KeyError as error:
            report.origins.setdefault(option.path, origin)
            report.add(option.path, str(error.args[0]))
