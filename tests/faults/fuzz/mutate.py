"""Damage to bytes and to trees of plain data, drawn from a generator so that every mutant can be made again."""

from __future__ import annotations

import copy
import random
from typing import Any

NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
TOKENS = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc2\x85", b"\xe2\x80\xa8", b"{", b"[" * 3000, b"}", b"\t", b'"', b"'",
    b"!!python/object/apply:os.system ['true']", b"&a [*a, *a]", b"${oc.env:HOME}", b"NaN", b"-Infinity", b"1e999",
    b"\\ud800", b"9" * 5000, b"<image>", b"<Img><ImageHere></Img>", b"os:system", b"/dev/zero", b"{0..99999999}", b"~",
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ",
    "\ud800", "a\x00b", "\u0085", "\u2028", "x" * 70_000, [], {}, [None], {"a": {}}, [[[[]]]], "nan", "null", "-1",
    "${oc.env:HOME}", "${model.llm}", "${", "os:system", "builtins:exec", "pathlib:Path", "/dev/zero", "/etc/hostname",
    ".", "/", "~", "../..", "pipe:true", "{000000..99999999}", "http://127.0.0.1:9/x", "file:///etc/hostname",
    "<image>", "<ImageHere>", "{question}", "{0.__class__}", "{a[b}", "%s", "$$", "</s>", "cpu:7", "cuda:99",
    "data:image/png;base64,",
]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """``data`` after one to six random changes."""
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 6])):
        if not result:
            return bytes(rng.randbytes(rng.randint(0, 40)))
        at = rng.randrange(len(result)) if rng.random() < 0.6 else rng.randrange(min(len(result), 256))
        size = min(rng.choice([1, 2, 4, 8, 64, 4096]), len(result) - at)
        match rng.randrange(8):
            case 0:
                result[at] ^= 1 << rng.randrange(8)
            case 1:
                del result[at:]
            case 2:
                del result[at : at + size]
            case 3:
                result[at:at] = result[at : at + size] * rng.choice([1, 2, 50])
            case 4:
                result[at:at] = rng.randbytes(size)
            case 5:
                width = rng.choice([1, 2, 4, 8])
                number = rng.choice(NUMBERS) % (1 << 8 * width)
                result[at : at + width] = number.to_bytes(width, rng.choice(["big", "little"]))
            case 6:
                result[at:at] = rng.choice(TOKENS)
            case 7:
                other = rng.randrange(len(result))
                result[at : at + size], result[other : other + size] = (
                    result[other : other + size],
                    result[at : at + size],
                )
    return bytes(result)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value below the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [p for key, value in items for p in [(*path, key), *places(value, (*path, key))]]


def bent(tree: Any, rng: random.Random) -> Any:
    """A copy of a tree after one to three random changes."""
    result = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 3])):
        found = places(result)
        if not found:
            return rng.choice(ODD)
        *parents, last = rng.choice(found)
        holder = result
        for key in parents:
            holder = holder[key]
        match rng.randrange(6):
            case 0 | 1 | 2:
                holder[last] = copy.deepcopy(rng.choice(ODD))
            case 3:
                del holder[last]
            case 4:
                value = holder[last]
                holder[last] = rng.choice(
                    [[value], {"name": value}, [value] * 300, str(value), {str(value)[:50]: value}]
                )
            case 5:
                if isinstance(holder, dict):
                    name = rng.choice(["", "nmae", "__class__", "path", "name", "${x}", "a.b", str(last) + "s", "\x00"])
                    holder[name] = holder.pop(last)
                else:
                    holder.insert(0, copy.deepcopy(rng.choice(ODD)))
    return result


def text_of(text: str, rng: random.Random) -> str:
    """A text with parts of odd values put in or cut out."""
    for _ in range(rng.choice([1, 1, 3])):
        at = rng.randrange(len(text) + 1)
        piece = rng.choice([*map(str, ODD), "=", ".", ",", ":", "[", "]", "{", "}", " ", "\n", "&a", "*a", "!!int"])
        text = rng.choice([text[:at] + piece + text[at:], text[:at], text[:at] + text[at + 3 :], text[:at] + piece])
    return text
