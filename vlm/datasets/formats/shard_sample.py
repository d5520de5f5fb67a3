"""Any sample as the members of a shard record, and back: ``sample.json`` beside its media.

::

    000000012.sample.json   {"id": "7", "messages": [
                                {"role": "user", "parts": [{"image": "0.jpg"}, {"text": "Where?"}]},
                                {"role": "assistant", "parts": [{"text": "At sea."}]}]}
    000000012.0.jpg

Beside ``id``, ``"only_last": true`` says that the last answer alone is trained.

A part is ``{"text": T}``, ``{"input": T}``, ``{"image": MEMBER}``, ``{"video": MEMBER}`` or, for a video that is a
folder of frames, ``{"video": [MEMBER, ...]}``.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from vlm.common.errors import DataError
from vlm.common.files import read_regular
from vlm.common.types import Image, Input, Message, Part, Role, Sample, Text, Video
from vlm.datasets.base import parse_json
from vlm.processors.image.decode import from_base64, read_frames
from vlm.processors.video.read import open_clip

MEMBER = "sample.json"
_EXT = re.compile(r"[a-z0-9]{1,8}")
_MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\x00", "tif"))


def to_members(sample: Sample) -> dict[str, bytes]:
    """Members (extension -> bytes) of a sample; encoded images and videos are copied as they are.

    Raises DataError: a medium is missing, unreadable or of an unknown kind.
    """
    members: dict[str, bytes] = {}

    def store(data: bytes, ext: str) -> str:
        name = f"{len(members)}.{ext}"
        members[name] = data
        return name

    messages = [{"role": m.role, "parts": [_described(p, store, sample.id) for p in m.parts]} for m in sample.messages]
    last = {"only_last": True} if sample.only_last else {}
    text = json.dumps({"id": sample.id, **last, "messages": messages}, ensure_ascii=False)
    return {MEMBER: text.encode(), **members}


def from_members(text: bytes, read: Callable[[str], bytes], known: set[str], where: str) -> Sample:
    """The sample that ``sample.json`` describes.

    Args:
        text: contents of the member.
        read: gives the bytes of another member of the record.
        known: the record's members.
        where: what to call the record in an error.

    Raises:
        DataError: not JSON, of another shape, or naming a member that does not exist.
    """
    tree = parse_json(text, f"{where}: {MEMBER}")
    turns = tree.get("messages") if isinstance(tree, dict) else None
    if not isinstance(turns, list) or not turns:
        raise DataError(f'{where}: {MEMBER} must be an object with a list "messages" of at least one message')
    messages = tuple(_message(turn, read, known, f"{where}: message {n}") for n, turn in enumerate(turns, start=1))
    return Sample(messages=messages, id=str(tree.get("id", "")), only_last=tree.get("only_last") is True)


def _described(part: Part, store: Callable[[bytes, str], str], name: str) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"input" if isinstance(part, Input) else "text": part.text}
    kind, source = type(part).__name__.lower(), part.source
    if isinstance(part, Video) and _is_frames(source):
        clip = open_clip(source, f"of sample {name}")
        return {kind: [store(*_encoded(frame, name)) for frame in clip.read(list(range(clip.count)))]}
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".json":
        text = read_frames(source, str(source))
        if not isinstance(text, str):
            raise DataError(f"sample {name}: {source} holds {len(text)} images", fix="one image is expected")
        source = from_base64(text, str(source))
    return {kind: store(*_encoded(source, name))}


def _is_frames(source: Any) -> bool:
    """Whether a video is a list of frames, a folder of them, or a ``.json`` file with them."""
    if isinstance(source, str | os.PathLike):
        return Path(source).is_dir() or (Path(source).suffix.lower() == ".json" and Path(source).is_file())
    return isinstance(source, list | tuple)


def _encoded(source: Any, name: str) -> tuple[bytes, str]:
    """The bytes of a medium and the extension of its member."""
    if isinstance(source, str | os.PathLike):
        try:
            data = read_regular(source)
        except FileNotFoundError:
            raise DataError(f"sample {name}: no file {source}", fix="check the dataset's image folder") from None
        except OSError as error:
            raise DataError(f"sample {name}: {source} cannot be read ({error.strerror})") from error
        ext = Path(source).suffix.lower().lstrip(".")
        return data, ext if _EXT.fullmatch(ext) else _sniffed(data)
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), _sniffed(bytes(source))
    if hasattr(source, "save"):  # PIL
        out = io.BytesIO()
        source.save(out, "PNG")
        return out.getvalue(), "png"
    raise DataError(f"sample {name}: a {type(source).__name__} cannot be stored in a shard")


def _sniffed(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((ext for magic, ext in _MAGIC if data.startswith(magic)), "bin")


def _message(turn: Any, read: Callable[[str], bytes], known: set[str], where: str) -> Message:
    role: Any = turn.get("role") if isinstance(turn, dict) else None
    if role not in get_args(Role):
        raise DataError(f"{where}: role {role!r} (known: {', '.join(get_args(Role))})")
    parts = turn.get("parts")
    if not isinstance(parts, list):
        raise DataError(f"{where}: parts must be a list, found {type(parts).__name__}")
    result = Message(role, tuple(_part(part, read, known, where) for part in parts))
    if role == "assistant" and not result.text.strip():
        raise DataError(f"{where}: the answer is empty", fix="remove the record")
    return result


def _part(part: Any, read: Callable[[str], bytes], known: set[str], where: str) -> Part:
    kind, value = next(iter(part.items())) if isinstance(part, dict) and len(part) == 1 else ("", None)
    if kind in ("text", "input") and isinstance(value, str):
        return Input(value) if kind == "input" else Text(value)
    names: list[Any] = value if isinstance(value, list) and kind == "video" else [value]
    if kind not in ("image", "video") or not all(isinstance(n, str) for n in names) or not names:
        raise DataError(f"{where}: part {part!r} is not one of text, input, image, video with its value")
    missing = [n for n in names if n not in known]
    if missing:
        raise DataError(f"{where}: no member {missing[0]!r} (members: {', '.join(sorted(known))})")
    data = [read(n) for n in names]
    if kind == "image":
        return Image(data[0])
    return Video(data if isinstance(value, list) else data[0])
