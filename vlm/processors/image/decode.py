"""Files, bytes and arrays -> images; home of PIL, shared with OpenCV.

Two ways: ``Opened.exact`` gives what PIL gives, ``Opened.reduced`` lets OpenCV decode a JPEG to half, a quarter or an
eighth of its size straight from the DCT coefficients (``decode: fast`` of an image recipe).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError
from vlm.common.files import read_regular
from vlm.processors.image.colour import NAMED, Colour, to_rgb
from vlm.processors.image.guard import FORMATS, checked, kind_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PILImage

PIXEL_CAP = 89_000_000
"""Largest width x height that is decoded; just below the size at which PIL itself warns of a decompression bomb."""

SIDE_CAP = 1_000_000
"""Longest side that is decoded: the weights of a resize, and PIL's table of rows, grow with it."""

_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""EXIF orientation -> what turns the pixels upright."""


class Opened:
    """An image within the pixel cap; of a JPEG only the header was read, its pixels are decoded on demand.

    Attributes:
        size: width and height after the EXIF rotation.
        transparent: whether :meth:`exact` met a transparent pixel.
    """

    transparent = False

    def __init__(self, source: Any, name: str, max_pixels: int, background: Colour | None = None) -> None:
        """Raises DataError: missing, empty, of an unknown format, too large or corrupt.

        ``background``: colour under transparent pixels; None drops the alpha.
        """
        self.label = name or (str(source) if isinstance(source, str | os.PathLike) else type(source).__name__)
        self._data, self._image = _open(source, self.label, max_pixels)
        self._background = background
        width, height = self._image.size
        if width * height > max_pixels or not width * height or max(width, height) > SIDE_CAP:
            raise _too_large(self.label, f"{width} x {height} pixels", max_pixels)
        with damage_named(self.label):
            _check_tiles(self._image, self.label, max_pixels)
            if self._image.format != "JPEG":
                self._image.load()  # a PNG may have its EXIF orientation after its pixels
        self._turn = _UPRIGHT.get(self._orientation())
        turned = self._turn in ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
        self.size = (height, width) if turned else (width, height)

    def exact(self) -> PILImage.Image:
        """RGB, upright, all pixels. Raises DataError: corrupt or truncated."""
        from PIL import Image

        with damage_named(self.label):
            self._image.load()
            result, self.transparent = to_rgb(self._image, self._background)
            return result if self._turn is None else result.transpose(Image.Transpose[self._turn])

    def reduced(self, factor: int) -> np.ndarray:
        """RGB uint8 ``[h, w, 3]``, upright, 1/1, 1/2, 1/4 or 1/8 of the size where that saves decoding.

        Only a complete JPEG in grey or YCbCr is reduced; anything else is decoded by :meth:`exact`, with its errors.
        """
        import numpy as np

        result = None
        if self._data is not None and self._image.format == "JPEG" and self._image.mode in ("RGB", "L"):
            # OpenCV returns what it could decode of a damaged file, so one without its end marker is left to PIL
            result = _opencv(self._data, factor) if b"\xff\xd9" in self._data[-64:] else None
        return np.asarray(self.exact()) if result is None else result

    def _orientation(self) -> int:
        try:
            return int(self._image.getexif().get(0x0112, 1))
        except _BROKEN:  # a damaged EXIF block; the pixels may be intact
            return 1


def decode(
    source: Any, *, name: str = "", max_pixels: int = PIXEL_CAP, background: Colour | None = NAMED["white"]
) -> PILImage.Image:
    """Any image as an upright RGB ``PIL.Image``.

    Palette, grey, CMYK and 16-bit images are converted; transparent pixels lie over ``background`` (None: alpha is
    dropped, as the published code does); of an animation the first frame is taken. An EXIF rotation is applied; the
    published code ignores it and sees photos from phones sideways. A ``.json`` file holds one base64 image. PIL
    decodes the formats of :data:`vlm.processors.image.guard.FORMATS`, OpenCV Radiance HDR and what PIL was built
    without.

    Raises:
        DataError: missing, empty, truncated, corrupt, unsupported or too large; the message names it.
    """
    return Opened(source, name, max_pixels, background).exact()


def check_size(data: bytes, label: str, max_pixels: int) -> None:
    """Read the header of an encoded image only. Raises DataError: not an image, or one of more pixels."""
    _, image = _open(data, label, max_pixels)
    width, height = image.size
    if width * height > max_pixels or not width * height or max(width, height) > SIDE_CAP:
        raise _too_large(label, f"{width} x {height} pixels", max_pixels)


def as_png(source: Any, name: str = "", size: tuple[int, int] | None = None) -> bytes:
    """An image as a PNG in RGB, no larger than ``size`` (width, height). Raises DataError: see :func:`decode`."""
    image = decode(source, name=name)
    if size is not None:
        image = image.copy()  # thumbnail works in place, and the image may be the caller's
        image.thumbnail(size)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def from_base64(text: str, label: str) -> bytes:
    """The bytes of a base64 text; a ``data:image/...;base64,`` head is allowed. Raises DataError: it is not base64."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image {label}: not base64 ({error})", fix="write the encoded file as base64 text") from None


def read_frames(path: str | os.PathLike[str], label: str) -> str | list[str]:
    """What a ``.json`` file of media holds: one base64 image, or the list of a video's base64 frames.

    Raises DataError: unreadable, not JSON, or JSON of another form.
    """
    try:
        result = json.loads(_read(path, label))
    except (ValueError, RecursionError) as error:
        raise DataError(f"medium {label}: not JSON ({error})", fix="write a base64 text or a list of them") from None
    if isinstance(result, str) or (isinstance(result, list) and all(isinstance(f, str) for f in result)):
        return result
    raise DataError(f"medium {label}: holds a {type(result).__name__}", fix="write a base64 text or a list of them")


def _open(source: Any, label: str, max_pixels: int) -> tuple[bytes | None, PILImage.Image]:
    """The encoded bytes, if any, and the image with its header read."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Image.Image):
        return None, source
    if not isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        return None, _from_array(source, label)
    data = checked(encoded(source, label), label)
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, with our own message
            return data, Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        if data.startswith(_KNOWN):
            raise _corrupt(label, error) from None
        # not the first decoder, because it accepts damaged files and returns what it could decode
        decoded = _opencv(data) if _for_opencv(data, label, max_pixels) else None
        if decoded is None:
            result = f"not an image format that can be read: {kind_of(data)}"
            raise DataError(f"image {label}: {result}", fix="convert it to JPEG or PNG") from None
        return data, Image.fromarray(decoded)
    except Image.DecompressionBombError as error:
        number = re.search(r"\d+", str(error))
        raise _too_large(label, f"{number.group() if number else 'far too many'} pixels", max_pixels) from error
    except _BROKEN as error:
        raise _corrupt(label, error) from error


def _for_opencv(data: bytes, label: str, max_pixels: int) -> bool:
    """Whether OpenCV is asked: Radiance HDR, and AVIF, which PIL reads only from version 11.3 on."""
    if data.startswith((b"#?RADIANCE", b"#?RGBE")):
        found = re.search(rb"\n[-+][XY] (\d{1,9}) [-+][XY] (\d{1,9})\n", data[:65536])
        height, width = map(int, found.groups()) if found else (0, 0)
        if width * height > max_pixels or max(width, height) > SIDE_CAP:
            raise _too_large(label, f"{width} x {height} pixels", max_pixels)
        return found is not None
    return data[4:12] in (b"ftypavif", b"ftypavis")


def _check_tiles(image: PILImage.Image, label: str, max_pixels: int) -> None:
    """Refuse a TIFF whose tiles, which are decoded whole, are larger than an image may be."""
    if image.format == "TIFF":
        width, height = (image.tag_v2.get(tag, 1) for tag in (322, 323))  # type: ignore[attr-defined]
        if width * height > max_pixels:
            raise _too_large(label, f"tiles of {width} x {height} pixels", max_pixels)


def encoded(source: Any, label: str) -> bytes:
    """The encoded bytes of a path or of bytes; of a ``.json`` file, of the image in it.

    Raises DataError: missing, empty, cannot be read, or several frames.
    """
    if isinstance(source, str | os.PathLike) and str(source).endswith(".json"):
        result = read_frames(source, label)
        if not isinstance(result, str):
            raise DataError(f"image {label}: holds {len(result)} frames, expected one", fix="use it as a video")
        return from_base64(result, label)
    return _read(source, label)


def _opencv(data: bytes, factor: int = 1) -> np.ndarray | None:
    """RGB uint8 ``[h, w, 3]``, upright, 1/1, 1/2, 1/4 or 1/8 of the size; None where OpenCV cannot decode it."""
    import cv2
    import numpy as np

    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
    cv2.setNumThreads(0)  # its thread pool does not survive the fork of a loader worker
    try:
        result = cv2.imdecode(np.frombuffer(data, np.uint8), flags.get(factor, cv2.IMREAD_REDUCED_COLOR_8))
    except cv2.error:
        return None
    return None if result is None else cv2.cvtColor(result, cv2.COLOR_BGR2RGB)


_BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError),
    *(RuntimeError, AssertionError, NameError, BufferError, MemoryError, struct.error, zlib.error),
)
"""What PIL's decoders raise on damaged files: next to anything, as fuzzing shows. Only calls of PIL are guarded so."""


_KNOWN = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*", b"BM")
"""First bytes of formats that PIL reads; OpenCV would return the intact part of such a file if it is damaged."""


def _read(source: Any, label: str) -> bytes:
    try:
        data = read_regular(source) if isinstance(source, str | os.PathLike) else bytes(source)
    except FileNotFoundError:
        fix = "check the path (in a dataset: its image folder, or --media-root)"
        raise DataError(f"image {label}: no such file", fix=fix) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"image {label}: cannot be read ({reason})") from error
    if not data:
        raise DataError(f"image {label}: empty", fix="fetch it again or remove the record")
    return data


def _from_array(array: Any, label: str) -> PILImage.Image:
    import numpy as np
    from PIL import Image

    if not isinstance(array, np.ndarray):
        found = f"image {label}: expected an image, found a {type(array).__name__}"
        raise DataError(found, fix="give a path, bytes, PIL image or array")
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not array.size or not shaped:
        raise DataError(f"image {label}: array {array.dtype} {array.shape}, expected uint8 [h, w] or [h, w, 3|4]")
    return Image.fromarray(np.ascontiguousarray(array))


@contextlib.contextmanager
def damage_named(label: str) -> Iterator[None]:
    """Raises DataError for what PIL raises on damaged files."""
    from PIL import Image

    try:
        yield
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise _corrupt(label, error) from error


def _corrupt(label: str, error: BaseException) -> DataError:
    from PIL import UnidentifiedImageError

    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # its own words name an object in memory
        reason = "its header is damaged"
    return DataError(f"image {label}: corrupt or truncated ({reason})", fix="fetch it again or remove the record")


def _too_large(label: str, found: str, cap: int) -> DataError:
    fix = "shrink it; a small file of so many pixels is a decompression bomb"
    most = f"allowed are 1 to {cap} pixels, and sides of up to {SIDE_CAP}"
    return DataError(f"image {label}: {found}, {most}", fix=fix)
