"""Text that a user wrote: the one reader of small text files."""

from __future__ import annotations

import re
from pathlib import Path

from vlm.common.errors import DataError, UserError

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(file: Path, name: str = "", error: type[UserError] = DataError, max_bytes: int | None = None) -> str:
    r"""The contents of a file in UTF-8, with or without a BOM; lines end with ``\n``.

    Args:
        file: a regular file; devices and pipes, which may never end, are refused.
        name: how messages name it; its path by default.
        error: class of what is raised.
        max_bytes: None: any size.

    Raises:
        UserError: of class ``error``; no such file, unreadable, too large or not UTF-8, with the line.
    """
    name = name or str(file)
    try:
        if not file.is_file():
            found = "not a file" if file.exists() else "no such file"
            raise error(f"{name}: {found}", fix="check the path")
        size = file.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise error(f"{name}: {size:,} bytes, allowed are {max_bytes:,}")
        data = file.read_bytes()
    except OSError as fault:
        raise error(f"{name} cannot be read ({fault.strerror or fault})") from fault
    return decode_text(data, name, error)


def decode_text(data: bytes, name: str, error: type[UserError] = DataError) -> str:
    """The text of bytes in UTF-8, as :func:`read_text` gives it. Raises ``error``: another encoding, with the line."""
    fix = "save it as UTF-8, e.g. with iconv -f ENCODING -t UTF-8"
    if data.startswith(_UTF16) or data[:1000].count(0) * 3 > len(data[:1000]):
        raise error(f"{name} cannot be read (not a text file in UTF-8; it seems to be UTF-16)", fix=fix)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        start = fault.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, start) + 1
        found = f"not a text file in UTF-8, line {line}: byte 0x{data[start]:02x}; it may be GBK or Latin-1"
        raise error(f"{name} cannot be read ({found})", fix=fix) from fault
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(text: str) -> list[str]:
    """The lines of a text, ended by line feeds alone; ``str.splitlines`` also cuts at U+0085, U+2028 and others."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def read_lines(file: Path, what: str, error: type[UserError] = DataError) -> list[str]:
    """The lines of a text file that are not blank. Raises ``error``: as :func:`read_text`, or a control character."""
    lines = lines_of(read_text(file, f"{what}: {file}", error))
    for number, line in enumerate(lines, start=1):
        if found := _CONTROL.search(line):
            raise error(f"{what}: {file}:{number}: control character U+{ord(found.group()):04X}", fix="remove it")
    return [line for line in lines if line.strip()]


def size_text(count: float) -> str:
    """A number of bytes in a unit that fits: ``"512 bytes"``, ``"49.2 kB"``, ``"32.1 GB"`` (powers of 1000)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def counted(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
