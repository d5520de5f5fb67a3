"""``${...}`` in values: references and a few functions (the home of OmegaConf)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from inspect import signature
from typing import Any

from vlm.common import trust
from vlm.common.paths import CORPORA, asset
from vlm.config.schema import MISSING, Path, Report
from vlm.config.tree import texts_in

FUNCTIONS = ("not", "or", "if", "asset", "pool")
"""What a file may call without trust."""
MAX_REFERENCES = 500
"""Interpolations of one file, and"""
MAX_IN_TEXT = 20
"""of one text."""
MAX_SIZE = 100_000
"""Characters that one text may stand for; each interpolation on the way counts like"""
STEP = 100
"""characters, because it takes time."""
_PLAIN = re.compile(r"\$\{([.\w\[\]]+)\}")
_REFERENCE = re.compile(r"\$\{params\.([A-Za-z_]\w*)\}")


def interpolate(
    data: dict[str, Any], params: dict[str, Any], helps: Mapping[str, str], report: Report
) -> dict[str, Any]:
    """``data`` with every ``${...}`` replaced by its value; problems go to ``report``.

    Args:
        data: the merged configuration.
        params: what ``${params.NAME}`` gives.
        helps: help texts of the parameters, for messages.
        report: also gets in ``blame`` which value comes from which parameter, and in ``broken`` what failed.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _register_resolvers(OmegaConf)
    texts = {path: text for path, text in texts_in(data, ()) if "${" in text}
    if sum(text.count("${") for text in texts.values()) > MAX_REFERENCES:
        report.add((), f"more than {MAX_REFERENCES} interpolations")
        report.broken |= set(texts)
        return _replace(data, dict.fromkeys(texts))
    references, invalid = References({**data, "params": params}), dict[Path, Any]()
    for path, text in texts.items():
        if problem := references.problem(path, text):
            report.add(path, f"found {text!r:.200}, {problem}")
            invalid[path] = None
    report.broken |= set(invalid)
    values = {name: None if ("model", name) in invalid else value for name, value in params.items()}
    try:
        root = OmegaConf.create({"params": values, **_replace(data, invalid)})
    except OmegaConfBaseException as error:  # an object that a mapping of a program holds, but no file
        report.add((), str(error).splitlines()[0])
        return _replace(data, dict.fromkeys(texts))
    results: dict[Path, Any] = {}
    for path in [p for p in texts if p not in invalid]:
        results[path] = None
        if _needs_unset(path, texts[path], params, helps, report):
            continue
        try:
            value: Any = root
            for key in path:
                value = value[key]
            results[path] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            report.add(path, f"found {texts[path]!r}: {str(error).splitlines()[0]}")
            report.broken.add(path)
    return _replace(data, results)


def _needs_unset(path: Path, text: str, params: Mapping[str, Any], helps: Mapping[str, str], report: Report) -> bool:
    """Whether ``text`` refers to a parameter that still has to be set (reported); notes where the value comes from."""
    for name in [n for n in _REFERENCE.findall(text) if n in params]:
        report.blame[path] = ("model", name)
        if params[name] == MISSING:
            report.broken.add(path)
            about = helps.get(name, "")
            report.add(("model", name), "must be set" + (f": {about}" if about else ""))
            return True
    return False


def _register_resolvers(omegaconf: Any) -> None:
    """``${not:x}``, ``${or:x,default}``, ``${if:x,a,b}``, ``${asset:name}`` and ``${pool:name}`` (package files)."""
    register = omegaconf.register_resolver
    if "replace" not in signature(register).parameters:  # OmegaConf < 2.4
        register = omegaconf.register_new_resolver
    register("not", lambda value: not value, replace=True)
    register("or", lambda first, second: first or second, replace=True)
    register("if", lambda test, yes, no: yes if test else no, replace=True)
    register("asset", asset, replace=True)
    register("pool", lambda name: str(CORPORA / "pools" / f"{name}.txt"), replace=True)


class References:
    """What the ``${...}`` of a configuration refer to, found by reading their syntax, without evaluating anything."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self._sizes: dict[Path, int | None] = {}

    def problem(self, path: Path, text: str) -> str | None:
        """Why the text at ``path`` must not be evaluated; None if it may be."""
        if text.count("${") > MAX_IN_TEXT:
            return f"more than {MAX_IN_TEXT} interpolations in one text"
        nodes = _syntax(text)
        if nodes is None:
            return "which is not a valid interpolation (write \\${ for a plain ${)"
        if not trust.is_given():
            from omegaconf import OmegaConf

            for name in (n for kind, n in nodes if kind == "function" and n not in FUNCTIONS):
                if "$" in name or OmegaConf.has_resolver(name):
                    return str(trust.refused(f"${{{name}:...}}", "read more than this file, e.g. the environment"))
            if any(kind == "value" and "$" in name for kind, name in nodes):
                return str(trust.refused("an interpolation in a name", "look up what cannot be checked beforehand"))
        if self.size(path) is None:
            return f"which refers to itself, or stands for more than {MAX_SIZE:,} characters"
        return None

    def size(self, path: Path) -> int | None:
        """Characters and values that the value at ``path`` stands for; None: too many, or it contains itself."""
        if path not in self._sizes:
            self._sizes[path] = None  # met again on the way: a loop
            total = 0
            for place, text in _leaves(_at(self.data, path), path):
                found = [self.size(_target(place, n)) for kind, n in _syntax(text) or () if kind == "value"]
                total += len(text) + sum(STEP + (MAX_SIZE if n is None else n) for n in found)
                if total > MAX_SIZE:
                    return None
            self._sizes[path] = total
        return self._sizes[path]


def _leaves(node: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Every value inside ``node`` as text, with its path."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(child, (*path, key))
    else:
        yield path, str(node)


def _at(node: Any, path: Path) -> Any:
    for key in path:
        if isinstance(node, list) and str(key).isdecimal():
            node = node[int(key)] if int(key) < len(node) else None
        else:
            node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _target(place: Path, reference: str) -> Path:
    """The path that ``a.b[0]``, or ``..b`` seen from ``place``, names."""
    name = reference.lstrip(".")
    up = len(reference) - len(name)
    base = place[: len(place) - up] if up else ()
    return (*base, *(key for key in re.split(r"[.\[\]]+", name) if key))


@cache
def _syntax(text: str) -> list[tuple[str, str]] | None:
    """``("value", "params.x")`` and ``("function", "not")`` for each interpolation; None: not valid."""
    if "${" not in _PLAIN.sub("", text) and "\\" not in text:
        return [("value", name) for name in _PLAIN.findall(text)]
    from omegaconf.errors import OmegaConfBaseException
    from omegaconf.grammar_parser import parse
    from omegaconf.grammar_visitor import OmegaConfGrammarParser as Grammar

    try:
        open_: list[Any] = [parse(text)]
    except (OmegaConfBaseException, RecursionError):
        return None
    result = []
    while open_:
        node = open_.pop()
        if isinstance(node, Grammar.InterpolationResolverContext):
            result.append(("function", node.resolverName().getText()))
        elif isinstance(node, Grammar.InterpolationNodeContext):
            result.append(("value", node.getText()[2:-1].strip()))
        open_ += node.children or [] if hasattr(node, "children") else []
    return result


def _replace(node: Any, values: Mapping[Path, Any], path: Path = ()) -> Any:
    """A copy of nested data with other values at some paths."""
    if path in values:
        return values[path]
    if isinstance(node, dict):
        return {k: _replace(v, values, (*path, k)) for k, v in node.items()}
    if isinstance(node, list):
        return [_replace(v, values, (*path, i)) for i, v in enumerate(node)]
    return node
