"""What a file is by its first bytes, for messages about files that are not what their name promises."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

HEAD = 4096
"""Bytes that are looked at."""
MAX_OLD_PICKLE = 2**20
"""Bytes of the largest pickle of protocol 0 or 1 (which has no signature) that is recognised."""

AGAIN = "download the file itself again, and compare its size with the published one"
FULL_WEIGHTS = "use the weights that it was converted from: .safetensors, .bin or .pth files"
UNPACK = "unpack it, and name the weight file inside"
SAVE_AGAIN = "save the tensors with safetensors.torch.save_file({name: tensor}, FILE)"
OTHER = "check the path; a weight file is .safetensors, or what torch.save writes"


class FileKind(NamedTuple):
    """A kind of file."""

    name: str  # for code: safetensors, torch, legacy, pickle, torchscript; other kinds have no reader
    about: str  # for messages: "an HTML page"
    fix: str  # what to do when weights were expected


SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"GGUF", "a GGUF file (quantised weights of llama.cpp)", f"{FULL_WEIGHTS}; a language model is format: gguf"),
    *((0, magic, "a GGML file (weights of an early llama.cpp)", FULL_WEIGHTS) for magic in (b"lmgg", b"fmgg", b"tjgg")),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or TensorFlow)", FULL_WEIGHTS),
    (0, b"\x93NUMPY", "a NumPy array", SAVE_AGAIN),
    (0, b"\x89PNG", "a PNG image", OTHER),
    (0, b"\xff\xd8\xff", "a JPEG image", OTHER),
    (0, b"GIF8", "a GIF image", OTHER),
    (8, b"WEBP", "a WebP image", OTHER),
    (8, b"AVI ", "an AVI video", OTHER),
    (8, b"WAVE", "a WAV sound", OTHER),
    (0, b"II*\x00", "a TIFF image", OTHER),
    (0, b"MM\x00*", "a TIFF image", OTHER),
    (0, b"BM", "a BMP image", OTHER),
    (4, b"ftyp", "an MP4 or AVIF file", OTHER),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video", OTHER),
    (0, b"%PDF", "a PDF document", OTHER),
    (0, b"\x1f\x8b", "a gzip archive", UNPACK),
    (0, b"BZh", "a bzip2 archive", UNPACK),
    (0, b"\xfd7zXZ", "an xz archive", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard archive", UNPACK),
    (0, b"7z\xbc\xaf", "a 7-Zip archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"PAR1", "a Parquet table", OTHER),
    (0, b"ARROW1", "an Arrow table", OTHER),
    (0, b"SQLite format 3", "an SQLite database", OTHER),
    (0, b"\x7fELF", "a program (ELF)", OTHER),
    (0, b"MZ", "a program for Windows", OTHER),
    (0, b"TFL3", "a TensorFlow Lite model", FULL_WEIGHTS),
    (4, b"TFL3", "a TensorFlow Lite model", FULL_WEIGHTS),
)
"""Offset, bytes there, what it is, what to do."""
ONNX_SECOND_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42\x72"
"""Tags of the protobuf fields that may follow ``ir_version`` in an ONNX model."""


def kind_of(path: Path) -> FileKind:
    """The kind of the file ``path``, by content; its name does not count. Raises OSError if it cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return FileKind("", "an empty file (0 bytes)", AGAIN)
    if len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] < 2**32:
        return FileKind("safetensors", "a safetensors file", "")
    if head[:2] == b"\x80\x02" and b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." in head[:16]:
        return FileKind("legacy", "a file of torch.save before version 1.6", "")
    if head[:4] == b"PK\x03\x04":
        return _archive(path)
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return FileKind("pickle", "a pickle that torch.save did not write", SAVE_AGAIN)
    for offset, magic, about, fix in SIGNATURES:
        if head[offset : offset + len(magic)] == magic:
            return FileKind("", about, fix)
    if not any(head):
        return FileKind("", f"filled with zeros ({size:,} bytes): an unfinished download or copy", AGAIN)
    if size <= MAX_OLD_PICKLE and _is_old_pickle(path.read_bytes()):
        return FileKind("pickle", "a pickle that torch.save did not write", SAVE_AGAIN)
    return _text(head, size) or _by_bytes(head, path.suffix.lower())


def _archive(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return FileKind("torch", "an incomplete zip archive", AGAIN)
    if any(name.endswith("/data.pkl") for name in names):
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            return FileKind("torchscript", "a TorchScript archive (a program with its weights)", SAVE_AGAIN)
        return FileKind("torch", "a file of torch.save", "")
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if names and all(name.endswith(".npy") for name in names):
        return FileKind("", f"NumPy arrays ({listed})", SAVE_AGAIN)
    if "config.json" in names and any(name.endswith(".h5") for name in names):
        return FileKind("", "a Keras model", FULL_WEIGHTS)
    return FileKind("", f"a zip archive with {listed or 'nothing in it'}", UNPACK)


def _text(head: bytes, size: int) -> FileKind | None:
    try:
        text = head.decode("utf-8-sig", errors="strict" if size <= len(head) else "ignore").strip()
    except UnicodeDecodeError:
        return None
    if any(ord(letter) < 32 and letter not in "\t\r\n\f" for letter in text):
        return None
    first = text.lower()
    line = (text.splitlines() or [""])[0][:70]
    if first.startswith("version https://git-lfs"):
        stated = next((row.split()[-1] for row in text.splitlines() if row.startswith("size ")), "")
        about = f"for a file of {int(stated):,} bytes" if stated.isdecimal() else "not the file itself"
        return FileKind(
            "", f"a Git LFS pointer ({about})", "run `git lfs pull` in its repository, or download the file"
        )
    if "annex/objects/" in first[:300]:
        return FileKind("", "a git-annex pointer, not the file itself", "run `git annex get` in its repository")
    if first.startswith(("<!doctype html", "<html", "<head", "<script", "<body")):
        return FileKind("", "an HTML page: the download got a page of the site, perhaps a login or an error", AGAIN)
    if first.startswith(("<?xml", "<error")):
        return FileKind("", "an XML document, perhaps an error of the server", AGAIN)
    if first.startswith(("{", "[")):
        return _json(text, size, line)
    return FileKind("", f"a text file that begins with {line!r}", OTHER)


def _json(text: str, size: int, line: str) -> FileKind:
    try:
        content = json.loads(text) if size <= HEAD else {}
    except (ValueError, RecursionError):
        content = {}
    said = next((content[key] for key in ("error", "message", "detail") if key in content), None) if content else None
    if isinstance(content, dict) and said is not None:
        return FileKind("", f"a JSON error message: {str(said)[:120]!r}", AGAIN)
    return FileKind("", f"JSON text that begins with {line!r}", OTHER)


def _by_bytes(head: bytes, suffix: str) -> FileKind:
    first, second, third = (*head[:3], 0, 0, 0)[:3]
    if suffix == ".onnx" or (first == 8 and 1 <= second < 32 and third in ONNX_SECOND_FIELDS):
        return FileKind("", "an ONNX model", FULL_WEIGHTS)
    if suffix in (".pb", ".h5", ".keras") or (first == 8 and second == 1):
        return FileKind("", "a TensorFlow model", FULL_WEIGHTS)
    mapping = 0x81 <= first <= 0x8F or first in (0xDE, 0xDF)
    if suffix == ".msgpack" or (mapping and any(0xA1 <= byte <= 0xBF or byte == 0xD9 for byte in head[1:4])):
        return FileKind("", "a MessagePack file (Flax weights)", FULL_WEIGHTS)
    return FileKind("", f"of an unknown kind (its first bytes are {head[:8].hex(' ')})", AGAIN)


def _is_old_pickle(content: bytes) -> bool:
    """Whether all of ``content`` is a pickle without signature (protocol 0 or 1); nothing of it is built."""
    if content[:1] not in b"(c]}Nl" or b"." not in content:
        return False
    count = 0
    try:
        for _ in pickletools.genops(io.BytesIO(content)):
            count += 1
    except (ValueError, IndexError, OverflowError, MemoryError):
        return False
    return count > 2


def mistaken(path: Path) -> str:
    """``"x.json is an HTML page ..."`` if the file's content explains why it cannot be read; "" if it does not.

    For files that hold text or have a reader of their own: a plain text file, JSON and unknown bytes explain nothing.
    """
    try:
        about = kind_of(path).about
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return "" if about.startswith(("a text file", "JSON text", "of an unknown kind")) else f"{path} is {about}"
