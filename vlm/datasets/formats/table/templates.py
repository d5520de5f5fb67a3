"""Templates over the fields of a record, and pools of texts to draw from.

A template is a format string: ``{question}`` is a field. Beyond Python's own syntax,

* ``{image.name}``, ``{image.stem}``, ``{url.suffix}`` are parts of a path;
* ``{instances[0][output]}`` indexes lists and objects, ``{choices[correct]}`` takes the element whose index is in the
  field ``correct``;
* ``{rationales: }`` and ``{words:, }`` join a list with the text after the colon;
* ``{image_id:012d}`` formats a number or a text of digits.

``null`` becomes an empty text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from vlm.common.errors import DataError
from vlm.common.paths import CORPORA
from vlm.common.text import read_lines

POOLS = CORPORA / "pools"
_STEP = re.compile(r"\.(\w+)|\[([^\]]+)\]")


def fill(template: str, values: Mapping[str, Any], where: str) -> str:
    """``template`` with the fields of a record. Raises DataError naming ``where`` and the fields it has."""
    try:
        return _Filler(where).vformat(template, (), values)
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}", fix="write {{ and }} for literal braces") from None


def names(template: str) -> set[str]:
    """The fields a template reads. Raises DataError for unbalanced braces."""
    try:
        result = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}", fix="write {{ and }} for literal braces") from None
    return {first_name(name) for name in result}


def fill_question(template: str, values: Mapping[str, Any], where: str) -> str:
    """``template`` filled. Raises DataError: as :func:`fill`, or all fields that it names are ``null``."""
    fields = names(template)
    if fields and all(name in values and values[name] is None for name in fields):
        listed = ", ".join(sorted(fields))
        raise DataError(f"{where}: {listed}: null, expected a text", fix="remove the record, or name another column")
    return fill(template, values, where)


def lookup(path: str, values: Mapping[str, Any], where: str) -> Any:
    """What ``path`` (``answer``, ``meta.size``, ``choices[correct]``) leads to. Raises DataError."""
    if path in values:
        return values[path]
    first = first_name(path)
    if first not in values:
        raise DataError(f"{where}: no field {first!r} (it has {', '.join(sorted(map(str, values))) or 'none'})")
    result = values[first]
    for attribute, key in _STEP.findall(path[len(first) :]):
        result = _step(result, attribute or key, values, f"{where}: {path}")
    return result


def read_pool(pool: str | Sequence[str], name: str = "pool") -> list[str]:
    """The texts of a pool: a list, a text file with one per line, or the name of a shipped file.

    Raises DataError: the file does not exist, or there is no text.
    """
    if not isinstance(pool, str):
        texts = list(pool)
    else:
        file = next((f for f in (Path(pool).expanduser(), POOLS / pool) if f.is_file()), None)
        if file is None:
            shipped = ", ".join(sorted(f.name for f in POOLS.glob("*.txt")))
            raise DataError(f"pools.{name}: no file {pool}", fix=f"name a text file or a shipped pool ({shipped})")
        texts = read_lines(file, f"pools.{name}")
    if not texts:
        raise DataError(f"pools.{name}: no text to draw from", fix="give at least one text")
    return texts


def first_name(path: str) -> str:
    """The field at the start of a path such as ``choices[correct]``."""
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _step(found: Any, key: str, values: Mapping[str, Any], where: str) -> Any:
    if isinstance(found, Mapping):
        if key in found:
            return found[key]
        raise DataError(f"{where}: no {key!r} (there are {', '.join(map(str, found))})")
    if isinstance(found, Sequence) and not isinstance(found, str | bytes):
        number = values.get(key, key)
        if not str(number).isdigit() or int(number) >= len(found):
            raise DataError(f"{where}: no element {number!r} in a list of {len(found)}")
        return found[int(number)]
    if isinstance(found, str) and key in ("name", "stem", "suffix"):
        return getattr(PurePath(found), key)
    raise DataError(f"{where}: {type(found).__name__} has no {key!r}")


class _Filler(string.Formatter):
    def __init__(self, where: str) -> None:
        self.where = where

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        return lookup(field_name, kwargs, self.where), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            return ""
        if isinstance(value, list | tuple):
            if not format_spec:
                raise DataError(f"{self.where}: a list in a template", fix="say how to join it, e.g. {words:, }")
            return format_spec.join(str(item) for item in value if item is not None)
        if isinstance(value, Mapping | bytes):
            kind = "an object" if isinstance(value, Mapping) else "bytes"
            raise DataError(f"{self.where}: {kind} in a template", fix="name a text inside it, e.g. {meta[title]}")
        if format_spec.endswith("d") and isinstance(value, str) and value.strip().isdigit():
            value = int(value)
        try:
            return format(value, format_spec)
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.where}: {value!r} does not fit {{:{format_spec}}} ({error})") from None
