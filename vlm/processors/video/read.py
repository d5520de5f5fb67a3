"""Video files, frame folders and base64 frames -> single frames, by decord or OpenCV."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from vlm.common.errors import ConfigError, DataError
from vlm.common.files import is_hidden, open_regular
from vlm.processors.image.decode import PIXEL_CAP, from_base64, read_frames
from vlm.processors.image.guard import kind_of

Backend = Literal["auto", "decord", "opencv"]
PACKAGES = {"decord": "decord", "opencv": "cv2"}
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_IMAGE_BYTES = (b"\x89PNG", b"\xff\xd8\xff", b"BM")

MAX_FRAMES = 1_000_000
"""Frames of a video (9 hours at 30 per second): OpenCV decodes all of them up to the last that is wanted."""

MAX_PIXELS = 8 * PIXEL_CAP
"""Pixels of the frames taken from one video (2.1 GB): 8 frames at the cap of an image, 85 of 4K."""

_PLAYLISTS = re.compile(rb"\s*(#EXTM3U|ffconcat|<\?xml|<MPD|v=0\s|\[playlist|rtsp:|http)", re.IGNORECASE)
"""Files that name other files or addresses, which a decoder would open."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Short(Exception):
    """A file ended after ``count`` frames, fewer than it declares."""

    count: int


@dataclass
class Clip:
    """An opened video: number of frames, frames per second (None where unknown), and the frames by index.

    ``read(ids)``, ids ascending, gives something an image recipe takes for each; it may raise :class:`Short`.
    """

    count: int
    rate: float | None
    read: Callable[[Sequence[int]], list[Any]]


def check_backend(backend: Backend) -> None:
    """Raises ConfigError when a decoder asked for by name is not installed."""
    if backend != "auto" and not installed(backend):
        package = "decord" if backend == "decord" else "opencv-python-headless"
        raise ConfigError(f"video: backend {backend} is not installed", fix=f"pip install {package}, or backend: auto")


def installed(decoder: str) -> bool:
    """Whether the package of a decoder can be imported."""
    return importlib.util.find_spec(PACKAGES[decoder]) is not None


def is_image_bytes(head: bytes) -> bool:
    """Whether bytes begin as an image does, not a video."""
    return head.startswith(_IMAGE_BYTES)


def open_clip(source: Any, label: str, backend: Backend = "auto") -> Clip:
    """Any video; see :class:`vlm.processors.video.recipe.VideoRecipe` for what ``source`` may be.

    Raises DataError: missing, unreadable, or no decoder is installed.
    """
    if isinstance(source, list | tuple):
        return _frames(list(source), label)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _frames([data], label) if is_image_bytes(data) else _video(data, label, backend)
    if not isinstance(source, str | os.PathLike):
        raise DataError(f"video {label}: a {type(source).__name__} is not a video", fix="give a path, bytes or frames")
    path = Path(source)
    try:
        folder, file = path.is_dir(), path.is_file()
    except ValueError as error:  # a null byte in the path
        raise DataError(f"video {label}: cannot be read ({error})") from None
    if folder:
        return _frames(_folder(path, label), label)
    if not file:
        raise DataError(f"video {label}: no such file or folder", fix="check the path (in a dataset: its folder)")
    if path.suffix.lower() == ".json":
        return _texts(read_frames(path, label), label)
    if path.suffix.lower() in IMAGES:
        return _frames([path], label)
    return _video(path, label, backend)


def first_frame(source: Any, label: str = "") -> Any:
    """The first frame of a video, as something that decodes to an image. Raises DataError: see :func:`open_clip`."""
    try:
        return open_clip(source, label or "the video").read([0])[0]
    except Short:
        raise DataError(f"video {label}: without frames") from None


def _frames(items: list[Any], label: str) -> Clip:
    """A video of given frames; a string is the path of an existing file, else base64."""

    def one(index: int) -> Any:
        item = items[index]
        if not isinstance(item, str) or item.lower().endswith(IMAGES) or (len(item) < 1024 and Path(item).is_file()):
            return item
        return from_base64(item, f"{label} frame {index}")

    return Clip(len(items), None, lambda ids: [one(k) for k in ids])


def _texts(found: str | list[str], label: str) -> Clip:
    """The frames of a ``.json`` file: base64 only, because a file that somebody sends names no other files."""
    texts = [found] if isinstance(found, str) else found
    return Clip(len(texts), None, lambda ids: [from_base64(texts[k], f"{label} frame {k}") for k in ids])


def _folder(path: Path, label: str) -> list[Path]:
    """The images of a folder, ``2.jpg`` before ``10.jpg``."""

    def key(file: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", file.name)]

    files = [f for f in path.iterdir() if f.suffix.lower() in IMAGES]
    result = sorted((f for f in files if not is_hidden(f.name)), key=key)
    if hidden := len(files) - len(result):
        log.debug("video %s: %d hidden files left out", label, hidden)
        _say_once("hidden files (such as ._1.jpg of a Mac) among the frames of a video are left out (shown once)")
    if not result:
        raise DataError(f"video {label}: a folder without frames", fix=f"put images into it ({', '.join(IMAGES)})")
    return result


def _video(source: Path | bytes, label: str, backend: Backend) -> Clip:
    """Open a video file with the first decoder that can."""
    allowed = ("decord", "opencv") if backend == "auto" else (backend,)
    usable = [name for name in allowed if installed(name)]
    if not usable:
        raise DataError(f"video {label}: no video decoder is installed", fix="pip install decord")
    if usable == ["opencv"] and backend == "auto":
        _say_once("decord is not installed; OpenCV decodes videos, which is slower")
    head = source[:1024] if isinstance(source, bytes) else _head(source, label)
    if _PLAYLISTS.match(head):
        raise DataError(f"video {label}: a playlist, which names other files", fix="name the video itself")
    for name in usable:
        clip = _with_decord(source, label) if name == "decord" else _with_opencv(source, label)
        if clip is not None:
            return clip if name == usable[-1] else _with_second(clip, source, label)
        if name != usable[-1]:
            log.debug("video %s: decord cannot open it", label)
            _say_once("decord cannot open a video; trying OpenCV (shown once)")
    fix = "convert it to H.264 in .mp4, give its frames as a folder of images, or remove the record"
    raise DataError(f"video {label}: no video that {' or '.join(usable)} can read ({kind_of(head)})", fix=fix)


def _with_second(clip: Clip, source: Path | bytes, label: str) -> Clip:
    """The video, with OpenCV for frames that decord cannot give (it opens files of some sizes that it cannot copy)."""

    def read(ids: Sequence[int]) -> list[Any]:
        try:
            return clip.read(ids)
        except DataError:
            other = _with_opencv(source, label)
            if other is None:
                raise
            _say_once("decord cannot decode a video; using OpenCV (shown once)")
            return other.read(ids)

    return Clip(clip.count, clip.rate, read)


def _head(path: Path, label: str) -> bytes:
    try:
        with open_regular(path) as file:
            head = file.read(1024)
    except OSError as error:
        raise DataError(f"video {label}: cannot be read ({error.strerror})") from error
    if not head:
        raise DataError(f"video {label}: empty", fix="fetch it again or remove the record")
    return head


def _with_decord(source: Path | bytes, label: str) -> Clip | None:
    """None if decord cannot open it."""
    import decord

    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        reader = decord.VideoReader(file, ctx=decord.cpu(0), num_threads=1)
        count, rate = len(reader), float(reader.get_avg_fps())
    except (RuntimeError, decord.DECORDError):
        return None
    _check_count(count, label)

    def read(ids: Sequence[int]) -> list[Any]:
        try:
            first = reader.get_batch(list(ids[:1])).asnumpy()
            _check_size(first.shape[2], first.shape[1], len(ids), label)
            return [*first, *(reader.get_batch(list(ids[1:])).asnumpy() if len(ids) > 1 else ())]
        except (RuntimeError, decord.DECORDError) as error:
            reason = str(error).strip().splitlines()[-1]
            fix = "fetch it again or set model.video.backend to opencv"
            raise DataError(f"video {label}: damaged ({reason})", fix=fix) from None

    return Clip(count, rate, read)


def _with_opencv(source: Path | bytes, label: str) -> Clip | None:
    """None if OpenCV cannot open it. Frames are read in order, because seeking is inexact."""
    import cv2

    kept: Any = None
    if isinstance(source, bytes):  # OpenCV reads only files; this one is deleted with the object
        kept = tempfile.NamedTemporaryFile(suffix=".video")  # noqa: SIM115
        kept.write(source)
        kept.flush()
    path = str(source) if kept is None else kept.name
    capture = cv2.VideoCapture(path)
    if not capture.isOpened():
        return None
    width, height = (int(capture.get(k)) for k in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    _check_size(width, height, 1, label)
    count, rate = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), float(capture.get(cv2.CAP_PROP_FPS))
    if not 0 < count <= MAX_FRAMES:  # the header does not say, or says nonsense
        count = sum(1 for _ in islice(iter(capture.grab, False), MAX_FRAMES + 1))
    capture.release()
    _check_count(count, label)

    def read(ids: Sequence[int]) -> list[Any]:
        _check_size(width, height, len(ids), label)
        opened, result = cv2.VideoCapture(path if kept is None else kept.name), {}
        for index in range(ids[-1] + 1):
            if not opened.grab():
                raise Short(index)
            if index in ids:
                result[index] = cv2.cvtColor(opened.retrieve()[1], cv2.COLOR_BGR2RGB)
        opened.release()
        return [result[k] for k in ids]

    return Clip(count, rate, read)


def _check_size(width: int, height: int, count: int, label: str) -> None:
    """Raises DataError: ``count`` frames of this size are too many pixels."""
    if width * height > PIXEL_CAP or width * height * count > MAX_PIXELS:
        most = f"allowed are {PIXEL_CAP} pixels for one and {MAX_PIXELS} together"
        fix = "shrink the video, or ask for fewer frames"
        raise DataError(f"video {label}: {count} frames of {width} x {height}, {most}", fix=fix)


def _check_count(count: int, label: str) -> None:
    """Raises DataError: more frames than are walked through."""
    if count > MAX_FRAMES:
        raise DataError(f"video {label}: more than {MAX_FRAMES:,} frames", fix="cut it into shorter videos")


@cache
def _say_once(text: str) -> None:
    log.warning("%s", text)
