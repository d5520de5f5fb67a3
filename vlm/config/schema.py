"""Checks plain data against dataclasses: types, unknown keys, choices; every problem is collected.

A dataclass is the only list of options of what it configures. :func:`read` turns a mapping into an
instance and never stops at the first fault, so that a user sees all of them at once.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union

from vlm.common.bounds import INT_BITS, Constraint, constraints
from vlm.common.errors import ConfigError, nearest, unknown

Path = tuple[str | int, ...]
MISSING = "???"
"""In YAML: a value that only the user can give."""
SHOWN = 50
"""Problems of one configuration that are shown."""


def dotted(path: Path) -> str:
    """``("model", "bridge", 0, "depth")`` -> ``"model.bridge.0.depth"``."""
    return ".".join(map(str, path))


@dataclass(frozen=True)
class Problem:
    """One fault: where (dotted path, file and line), what was found, what is allowed."""

    path: str
    where: str
    message: str

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.path[:200] or 'file'}{place[:400]}: {self.message[:2000]}"


class ConfigProblems(ConfigError):
    """All problems of one configuration; ``problems`` holds them one by one."""

    def __init__(self, title: str, problems: Sequence[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))
        count = len(self.problems)
        lines = "".join(f"\n  - {p}" for p in self.problems[:SHOWN])
        more = f"\n  ... and {count - SHOWN} more" if count > SHOWN else ""
        super().__init__(f"{title}: {count} problem{'s' if count != 1 else ''}{lines}{more}")


@dataclass
class Report:
    """Collects problems; knows where a value was written and, for options, its literal text.

    ``blame``: path of a value -> path of the parameter that it was interpolated from; ``helps``: path of a parameter ->
    its help; ``broken``: paths already reported; ``coming``: files and folders that count as there, since another run
    will have made them by then.
    """

    origins: dict[Path, str] = field(default_factory=dict)
    texts: dict[Path, str] = field(default_factory=dict)
    blame: dict[Path, Path] = field(default_factory=dict)
    helps: dict[Path, str] = field(default_factory=dict)
    broken: set[Path] = field(default_factory=set)
    coming: Collection[str] = ()
    problems: list[Problem] = field(default_factory=list)

    def where(self, path: Path) -> str:
        """``file:line`` of the value at ``path``, or of the nearest mapping around it."""
        path = self.blame.get(path, path)
        for cut in range(len(path), -1, -1):
            if path[:cut] in self.origins:
                return self.origins[path[:cut]]
        return ""

    def about(self, path: Path) -> str:
        """The help text of the parameter that the value at ``path`` comes from, as the end of a message."""
        text = self.helps.get(self.blame.get(path, path), "")
        return f"; expected: {text}" if text else ""

    def add(self, path: Path, message: str) -> None:
        """Note a problem of the value at ``path`` (named by the parameter it came from, if any)."""
        self.problems.append(Problem(dotted(self.blame.get(path, path)), self.where(path), message))

    def unknown(self, path: Path, allowed: Sequence[str], what: str = "key", name: str | None = None) -> None:
        """Note that ``name`` (default: the last part of ``path``) is not known, with the nearest and the list."""
        text = str(path[-1]) if name is None else name
        self.add(path, unknown(what, text, allowed) if len(self.problems) < SHOWN else f"unknown {what}")

    def raise_if_any(self, title: str) -> None:
        """Raise all problems together. Raises ConfigProblems: if there are any."""
        if self.problems:
            raise ConfigProblems(title, self.problems)


def hints(cls: type, ranges: bool = True) -> dict[str, Any]:
    """Types of a dataclass's fields, with their ranges; names nested in the enclosing classes are found too."""
    module = vars(sys.modules.get(cls.__module__, types.ModuleType("none")))
    scope: dict[str, Any] = {}
    outer: Any = None
    for part in cls.__qualname__.split(".")[:-1]:
        outer = module.get(part) if outer is None else getattr(outer, part, None)
        scope.update(vars(outer) if outer is not None else {})
    return typing.get_type_hints(cls, localns=scope, include_extras=ranges)


def spelled(cls: type) -> dict[str, tuple[str, str]]:
    """Field -> its type in Python's spelling without the ranges, and the allowed values in words where it has any."""
    bare, full = hints(cls, ranges=False), hints(cls)
    result = {}
    for spec in dataclasses.fields(cls):
        plain, kind = bare[spec.name], full[spec.name]
        words = [c.describe("").strip().removeprefix("of ") for c in constraints(kind)]
        result[spec.name] = (str(spec.type) if plain == kind else _spelling(plain), "; ".join(words))
    return result


def _spelling(kind: Any) -> str:
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " | ".join(map(_spelling, typing.get_args(kind)))
    if kind is type(None):
        return "None"
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("collections.abc.", "")


def read(cls: Any, data: Any, path: Path, report: Report) -> Any:
    """An instance of dataclass ``cls`` from ``data``; problems go to ``report`` and leave the default.

    Returns:
        The instance, or None when a required field is missing or unusable.
    """
    if not isinstance(data, Mapping):
        report.add(path, f"found {describe(data)}, expected a mapping with keys {', '.join(names_of(cls))}")
        return None
    types_of, known = hints(cls), {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in data:
        if key not in known:
            report.unknown((*path, key), list(known))
    values: dict[str, Any] = {}
    complete, unusable = True, []
    for name, spec in known.items():
        ok, about = not required(spec), spec.metadata.get("help", "")
        if name in data:
            fits, value = convert(types_of[name], data[name], (*path, name), report, about)
            choices = spec.metadata.get("choices")
            if fits and choices and value not in choices:
                report.add((*path, name), f"found {value!r}{nearest(str(value), list(map(str, choices)))}")
            if fits:
                values[name], ok = value, True
            else:
                unusable.append(name)
        elif not ok:
            report.add((*path, name), f"missing; expected {type_name(types_of[name])}{about and f': {about}'}")
        complete = complete and ok
    try:
        return cls(**values) if complete else None
    except (ValueError, ConfigError) as error:  # of its __post_init__; about a default that replaces a fault?
        if not any(re.search(rf"\b{name}\b", str(error)) for name in unusable):
            report.add(path, str(error))
        return None


def required(spec: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING


def names_of(cls: Any) -> list[str]:
    """Names of a dataclass's options."""
    return [f.name for f in dataclasses.fields(cls) if f.init]


def convert(kind: Any, value: Any, path: Path, report: Report, about: str = "") -> tuple[bool, Any]:
    """``(True, value)`` in the type ``kind``, or ``(False, None)`` with a problem noted.

    An integer is accepted for a float and a list for a tuple; an option's literal text for a string
    (``--options run.job_name=123`` is the string ``"123"``).
    """
    if path in report.broken:
        return False, None
    if isinstance(value, str) and value == MISSING:
        report.add(path, "must be set" + (f": {about}" if about else ""))
        return False, None
    known = len(report.problems)
    fits, result = _fit(kind, value, path, report)
    if not fits and path in report.texts:
        fits, result = _fit(kind, report.texts[path], path, report)
    if not fits and len(report.problems) == known:  # otherwise an item was reported
        report.add(path, f"found {describe(value)}, expected {type_name(kind)}" + (f" ({about})" if about else ""))
    return fits, result


def _fit(kind: Any, value: Any, path: Path, report: Report) -> tuple[bool, Any]:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is dataclasses.MISSING:
        return True, value
    if origin in (Union, types.UnionType):
        order = sorted(args, key=lambda a: (a is not type(value), dataclasses.is_dataclass(a)))
        tries = (_fit(a, value, path, report) for a in order)
        return next((result for result in tries if result[0]), (False, None))
    if origin is Annotated:
        fits, result = _fit(args[0], value, path, report)
        return fits and all(c.allows(result) for c in args[1:] if isinstance(c, Constraint)), result
    if origin is Literal:
        return value in args and type(value) in {type(a) for a in args}, value
    if dataclasses.is_dataclass(kind):
        return (True, read(kind, value, path, report)) if isinstance(value, Mapping) else (False, None)
    if (origin or kind) in (list, tuple, Sequence):
        return _fit_list(origin or kind, args, value, path, report)
    if (origin or kind) in (dict, Mapping):
        if not isinstance(value, Mapping):
            return False, None
        inner = args[1] if len(args) == 2 else Any
        pairs = {k: convert(inner, v, (*path, k), report) for k, v in value.items()}
        return True, {k: v for k, (ok, v) in pairs.items() if ok}
    if kind in (int, float):
        return _fit_number(kind, value)
    if kind in (None, type(None)):
        return value is None, None
    return (isinstance(value, kind), value) if isinstance(kind, type) else (True, value)


def _fit_number(kind: Any, value: Any) -> tuple[bool, Any]:
    """Neither a boolean, nor infinite or not a number, nor an integer that no machine word holds."""
    whole = isinstance(value, int) and not isinstance(value, bool) and -(2 ** (INT_BITS - 1)) <= value < 2**INT_BITS
    if kind is int or whole:
        return whole, kind(value) if whole else None
    return isinstance(value, float) and math.isfinite(value), value


def _fit_list(kind: Any, args: tuple[Any, ...], value: Any, path: Path, report: Report) -> tuple[bool, Any]:
    if not isinstance(value, (list, tuple)):
        return False, None
    fixed = kind is tuple and args and args[-1] is not Ellipsis
    if fixed and len(args) != len(value):
        return False, None
    kinds = args if fixed else [args[0] if args else Any] * len(value)
    items = [convert(k, v, (*path, i), report) for i, (k, v) in enumerate(zip(kinds, value))]
    result = [v for _, v in items]
    return all(ok for ok, _ in items), tuple(result) if kind is tuple else result


def describe(value: Any) -> str:
    """A value and its type, as shown in messages."""
    if value is None:
        return "null"
    text = repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{text}, which is not a finite number"
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type_name(type(value))})"


def type_name(kind: Any) -> str:
    """A type as a reader of YAML would name it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if origin is Annotated:
        name = type_name(args[0])
        for constraint in (c for c in args[1:] if isinstance(c, Constraint)):
            name = constraint.describe(name)
        return name
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if dataclasses.is_dataclass(kind):
        return "a mapping with keys " + ", ".join(names_of(kind))
    if (origin or kind) in (list, tuple, Sequence):
        return "a list" + (f" of {type_name(args[0])}" if args and args[0] is not Any else "")
    if (origin or kind) in (dict, Mapping):
        return "a mapping"
    plain = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
    return plain.get(kind, getattr(kind, "__name__", str(kind)))
