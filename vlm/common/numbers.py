"""NaN and infinity in files of records: missing values, as ``null`` is.

JSON has neither, but pandas writes both; Parquet columns of floats hold NaN where a value is missing.
"""

from __future__ import annotations

import math
from typing import Any


def finite_float(text: str) -> float | None:
    """The number that a text spells, or None where it is too large to be one."""
    value = float(text)
    return value if math.isfinite(value) else None


JSON_NUMBERS: dict[str, Any] = {"parse_float": finite_float, "parse_constant": lambda _: None}
"""Options of ``json.loads`` with which NaN and infinity become None."""


def without_nan(value: Any) -> Any:
    """A value of plain lists and dictionaries with None in place of NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list) else value
