"""What is checked of an encoded image before a decoder sees it, so that no file costs unbounded time or memory.

Decoders trust a file about how much work it is. Here a cheap pass over its structure bounds that work: the format is
one of :data:`FORMATS`, a JPEG has few scans, a PNG is handed on without texts and colour profile (which PIL would
expand), and the tags of an EXIF block cannot claim more than the file holds many times over.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from vlm.common.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats of PIL that are decoded, as far as PIL was built with them. Others run programs
(EPS), hold images inside images (ICO, ICNS) or are hardly ever tried on damaged files."""

MAX_SCANS = 100
"""Scans of a JPEG; encoders write up to about 20. Each one costs a pass over all pixels."""

MAX_CHUNKS = 500_000
"""Chunks of a PNG; each costs a step in Python."""

MAX_PLAIN = 1 << 21
"""Bytes of a PNM image whose levels are written as text, which PIL reads number by number in Python."""

MAX_PROFILE = 1 << 16
"""Bytes of a PNG's text with an orientation once expanded; longer ones are left out."""

MAX_DIRECTORIES = 10_000
"""Beginnings of EXIF blocks in one file."""

MAX_TAGS = 64 << 20
"""Bytes that the tags of an EXIF block's or TIFF's first directory may claim together, beyond what the file holds."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_ORIENTED = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_TIFF = re.compile(rb"II\*\x00|MM\x00\*")
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

_KINDS = (
    (b"%!PS", "an EPS drawing"),
    (b"\xc5\xd0\xd3\xc6", "an EPS drawing"),
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop file"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"icns", "an icon (ICNS)"),
    (b"DDS ", "a DDS texture"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with git lfs pull"),
)


def kind_of(data: bytes) -> str:
    """What a file that is not read as an image is, by its first bytes; a message never quotes what it holds."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head and head.startswith(b"<"):
        return "an SVG drawing"
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if data[4:8] == b"ftyp":
        return f"a file of type {data[8:12].decode('latin-1')!r}, e.g. HEIC or a video"
    return next((kind for magic, kind in _KINDS if data.startswith(magic)), "of an unknown kind")


def checked(data: bytes, label: str) -> bytes:
    """The bytes to decode: those of the file, or of a PNG without what has no pixels.

    Raises DataError: more scans, chunks or tags than any camera or program writes.
    """
    if data.startswith(_PNG):
        data = _without_texts(data, label)
    elif data.startswith((b"P1", b"P2", b"P3")) and len(data) > MAX_PLAIN:
        raise _bomb(label, f"a PNM of {len(data):,} bytes written as text, allowed are {MAX_PLAIN:,}")
    elif data.startswith(b"\xff\xd8"):
        scans = sum(kind == 0xDA for kind in _jpeg_markers(data))
        if scans > MAX_SCANS:
            raise _bomb(label, f"a JPEG of {scans:,} scans, allowed are {MAX_SCANS}")
    for number, found in enumerate(_TIFF.finditer(data)):
        if number >= MAX_DIRECTORIES:
            raise _bomb(label, f"more than {MAX_DIRECTORIES:,} EXIF blocks")
        _check_tags(memoryview(data)[found.start() :], label)
    return data


def _jpeg_markers(data: bytes) -> Iterator[int]:
    """Second bytes of the markers of the first image of a JPEG, those inside segments (thumbnails) left out."""
    place = 2
    while found := _MARKER.search(data, place):
        kind, place = data[found.end() - 1], found.end()
        yield kind
        if kind == 0xD9:
            return
        if kind not in (0x01, 0xD8):
            place += max(int.from_bytes(data[place : place + 2], "big"), 2)


def _without_texts(data: bytes, label: str) -> bytes:
    """A PNG with the chunks of its first image and its orientation only; what follows a damaged chunk is kept."""
    kept, place, count, dropped = [_PNG], len(_PNG), 0, False
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            break
        count += 1
        if not kind.isalpha():
            break
        if count > MAX_CHUNKS:
            raise _bomb(label, f"a PNG of more than {MAX_CHUNKS:,} chunks")
        chunk = data[place + 8 : end - 4] if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
        if kind in _PNG_KEPT or kind[0] < 97 or _is_orientation(kind, chunk):
            kept.append(data[place:end])
        else:
            dropped = True
        place = end
        if kind == b"IEND":
            break
    return b"".join([*kept, data[place:]]) if dropped else data


def _is_orientation(kind: bytes, chunk: bytes) -> bool:
    """Whether a text chunk may hold an orientation and expands to a small text."""
    name = next((name for name in _ORIENTED if chunk.startswith(name)), None)
    if name is None or len(chunk) > MAX_PROFILE:
        return False
    if kind == b"tEXt":
        return True
    packed = chunk[len(name) + 1 :] if kind == b"zTXt" else chunk[len(name) :]
    if kind == b"iTXt":
        if packed[:1] == b"\0":
            return True
        packed = packed[2:].split(b"\0", 2)[-1]
    try:
        return len(zlib.decompressobj().decompress(packed, MAX_PROFILE + 1)) <= MAX_PROFILE
    except zlib.error:
        return False


def _check_tags(block: memoryview, label: str) -> None:
    """Refuse a first directory whose tags claim far more bytes than there are; PIL copies each of them."""
    order = "<" if block[:2] == b"II" else ">"
    if len(block) < 8:
        return
    (place,) = struct.unpack_from(f"{order}I", block, 4)
    if place + 2 > len(block):
        return
    (count,) = struct.unpack_from(f"{order}H", block, place)
    count = min(count, (len(block) - place - 2) // 12)
    entries = struct.iter_unpack(f"{order}HHII", block[place + 2 : place + 2 + 12 * count])
    total = sum(min(_TYPE_SIZES.get(kind, 0) * number, len(block)) for _, kind, number, _ in entries)
    if total > MAX_TAGS + len(block):
        raise _bomb(label, f"its tags claim {total:,} bytes of a file with {len(block):,}")


def _bomb(label: str, found: str) -> DataError:
    return DataError(f"image {label}: {found}", fix="write it again with an image program, or remove the record")
