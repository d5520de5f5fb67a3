"""Operations of a chat template that could take all time or memory in one step."""

from __future__ import annotations

import re
from collections.abc import Callable, Sized
from functools import wraps
from types import BuiltinMethodType
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_SIZE = 10_000_000
"""Letters or items that one operation may make; a conversation has some thousands."""
MOST_BITS = 10_000
"""Size of a whole number."""
WIDTH = re.compile(r"\d{7,}|%[^a-zA-Z]*\*")
"""A width in a format that is too large, or is given apart."""
WIDENING = ("batch", "center", "format", "indent", "replace", "slice")
"""Filters whose result may be much larger than what they are given."""


class TooLarge(ValueError):
    """An operation whose result would be larger than :data:`MOST_SIZE`."""


def _check(large: bool) -> None:
    if large:
        raise TooLarge(f"one of its operations makes more than {MOST_SIZE:,} letters or items")


def _check_format(text: Any) -> None:
    _check(isinstance(text, str) and WIDTH.search(text) is not None)


def _check_counts(values: Any) -> None:
    _check(any(isinstance(value, int) and abs(value) > MOST_SIZE for value in values))


def _check_replaced(text: Any, old: Any = None, new: Any = None) -> None:
    texts = [value for value in (text, old, new) if isinstance(value, str)]
    _check(len(texts) == 3 and len(text) + text.count(old) * len(new) > MOST_SIZE)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' sandbox for chat templates, in which no single operation takes all time or memory."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in WIDENING:
            self.filters[name] = _bounded(self.filters[name])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The result of ``left operator right``. Raises TooLarge."""
        sizes = [len(value) for value in (left, right) if isinstance(value, Sized)]
        if operator == "**":
            _check(_bits(left) * abs(right) > MOST_BITS if isinstance(right, int) else False)
        elif operator == "*":
            numbers = [abs(value) for value in (left, right) if isinstance(value, int)]
            _check(_bits(left) + _bits(right) > MOST_BITS)
            _check(bool(sizes and numbers) and sizes[0] * numbers[0] > MOST_SIZE)
        elif operator == "+":
            _check(sum(sizes) > MOST_SIZE)
        else:
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """The result of ``function(...)``. Raises TooLarge."""
        text = function.__self__ if isinstance(function, BuiltinMethodType) else None
        if isinstance(text, str):
            _check_counts(args)
            if function.__name__ == "replace":
                _check_replaced(text, *args[:2])
        return super().call(context, function, *args, **options)

    def wrap_str_format(self, value: Any) -> Any:
        """``str.format`` of a text, within the sandbox. Raises TooLarge: a width in it is."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def bounded(*args: Any, **options: Any) -> Any:
        _check_counts([*args, *options.values()])
        for value in args:
            _check_format(value)
        if function.__name__ == "do_replace":
            _check_replaced(*args[-3:])
        return function(*args, **options)

    return bounded


def use_bounds() -> None:
    """Let transformers compile chat templates for :class:`BoundedEnvironment`."""
    from transformers.utils import chat_template_utils

    chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment  # type: ignore[attr-defined, misc]
