"""Files, bytes and arrays -> images; home of PIL, shared with OpenCV.

Two ways: ``Opened.exact`` gives what PIL gives, ``Opened.reduced`` lets OpenCV decode a JPEG to half, a quarter or an
eighth of its size straight from the DCT coefficients (``decode: fast`` of an image recipe).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PILImage

PIXEL_CAP = 89_000_000
"""Largest width x height that is decoded; just below the size at which PIL itself warns of a decompression bomb."""


class Opened:
    """An image within the pixel cap; of a JPEG only the header was read, its pixels are decoded on demand.

    Attributes:
        size: width and height after the EXIF rotation.
    """

    def __init__(self, source: Any, name: str, max_pixels: int) -> None:
        """Raises DataError: missing, empty, of an unknown format, too large or corrupt."""
        self.label = name or (str(source) if isinstance(source, str | os.PathLike) else type(source).__name__)
        self._data, self._image = _open(source, self.label, max_pixels)
        width, height = self._image.size
        if width * height > max_pixels or not width * height:
            raise _too_large(self.label, f"{width} x {height} pixels", max_pixels)
        if self._image.format != "JPEG":
            self._load()  # the orientation of a PNG may follow its pixels
        self.size = (height, width) if self._orientation() > 4 else (width, height)

    def exact(self) -> PILImage.Image:
        """RGB, upright, all pixels. Raises DataError: corrupt or truncated."""
        from PIL import ImageOps

        self._load()
        try:
            return _to_rgb(ImageOps.exif_transpose(self._image))
        except _BROKEN as error:
            raise _corrupt(self.label, error) from error

    def _load(self) -> None:
        try:
            self._image.load()
        except _BROKEN as error:
            raise _corrupt(self.label, error) from error

    def reduced(self, factor: int) -> np.ndarray:
        """RGB uint8 ``[h, w, 3]``, upright, 1/1, 1/2, 1/4 or 1/8 of the size where that saves decoding.

        Only a complete JPEG in grey or YCbCr is reduced; anything else is decoded by :meth:`exact`, with its errors.
        """
        import numpy as np

        result = None
        if self._data is not None and self._image.format == "JPEG" and self._image.mode in ("RGB", "L"):
            result = _jpeg(self._data, factor)
        return np.asarray(self.exact()) if result is None else result

    def _orientation(self) -> int:
        try:
            return int(self._image.getexif().get(0x0112, 1))
        except _BROKEN:  # a damaged EXIF block; the pixels may be intact
            return 1


def decode(source: Any, *, name: str = "", max_pixels: int = PIXEL_CAP) -> PILImage.Image:
    """Any image as an upright RGB ``PIL.Image``.

    Palette, grey, CMYK and 16-bit images are converted, alpha is dropped (as the published code did); of an
    animation the first frame is taken. An EXIF rotation is applied; the published code ignores it and sees
    photos from phones sideways. A ``.json`` file holds one base64 image. PIL decodes; a
    format it does not know is offered to OpenCV.

    Raises:
        DataError: missing, empty, truncated, corrupt, unsupported or too large; the message names it.
    """
    return Opened(source, name, max_pixels).exact()


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
    except ValueError as error:
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
    data = _encoded(source, label)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, with our own message
            return data, Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        if data.startswith(_KNOWN):
            raise _corrupt(label, error) from None
        return data, _opencv(data, label)
    except Image.DecompressionBombError as error:
        result = re.search(r"\d+", str(error))
        raise _too_large(label, f"{result.group() if result else 'far too many'} pixels", max_pixels) from error
    except _BROKEN as error:
        raise _corrupt(label, error) from error


def _encoded(source: Any, label: str) -> bytes:
    if isinstance(source, str | os.PathLike) and str(source).endswith(".json"):
        result = read_frames(source, label)
        if not isinstance(result, str):
            raise DataError(f"image {label}: holds {len(result)} frames, wanted one", fix="use it as a video")
        return from_base64(result, label)
    return _read(source, label)


def _jpeg(data: bytes, factor: int) -> np.ndarray | None:
    """OpenCV's decoding of a JPEG that has its end marker; None where OpenCV or the end is missing.

    OpenCV returns the intact part of a damaged file, so truncated ones are left to PIL, which refuses them.
    """
    import cv2
    import numpy as np

    if b"\xff\xd9" not in data[-64:]:
        return None
    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
    cv2.setNumThreads(0)  # its thread pool does not survive a fork
    result = cv2.imdecode(np.frombuffer(data, np.uint8), flags.get(factor, cv2.IMREAD_REDUCED_COLOR_8))
    return None if result is None else cv2.cvtColor(result, cv2.COLOR_BGR2RGB)


_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
"""What PIL's decoders raise on damaged files."""


_KNOWN = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*", b"BM")
"""First bytes of formats that PIL reads; OpenCV would return the intact part of such a file if it is damaged."""


def _read(source: Any, label: str) -> bytes:
    if not isinstance(source, str | os.PathLike):
        data = bytes(source)
    else:
        try:
            data = Path(source).read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"image {label}: no such file", fix="check the path (in a dataset: its image folder)"
            ) from None
        except OSError as error:
            raise DataError(f"image {label}: cannot be read ({error.strerror})") from error
    if not data:
        raise DataError(f"image {label}: empty", fix="fetch it again or remove the record")
    return data


def _to_rgb(image: PILImage.Image) -> PILImage.Image:
    """RGB of the same brightness: 16-bit and float greys are scaled to 8 bits, which PIL would clip."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        import numpy as np
        from PIL import Image

        values = np.asarray(image, dtype=np.float64)
        top = 1.0 if image.mode == "F" and values.max() <= 1 else 255.0 if values.max() <= 255 else 65535.0
        values = np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8)
        return Image.fromarray(values).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _from_array(array: Any, label: str) -> PILImage.Image:
    import numpy as np
    from PIL import Image

    if not isinstance(array, np.ndarray):
        result = type(array).__name__
        raise DataError(
            f"image {label}: expected an image, found a {result}", fix="give a path, bytes, PIL image or array"
        )
    good: bool = array.dtype == np.uint8 and array.size > 0
    good = good and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
    if not good:
        raise DataError(f"image {label}: array {array.dtype} {array.shape}, wanted uint8 [h, w] or [h, w, 3|4]")
    return Image.fromarray(np.ascontiguousarray(array))


def _opencv(data: bytes, label: str) -> PILImage.Image:
    """Decode formats that PIL does not know. OpenCV is not tried first because it accepts damaged files."""
    import cv2
    import numpy as np
    from PIL import Image

    cv2.setNumThreads(0)
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        decoded = None
    if decoded is None:
        result = f"not an image format that can be read (it begins with {data[:20]!r})"
        raise DataError(f"image {label}: {result}", fix="convert it to JPEG or PNG")
    return Image.fromarray(decoded[:, :, ::-1].copy())


def _corrupt(label: str, error: BaseException) -> DataError:
    return DataError(f"image {label}: corrupt or truncated ({error})", fix="fetch it again or remove the record")


def _too_large(label: str, found: str, cap: int) -> DataError:
    fix = "shrink it; a small file of so many pixels is a decompression bomb"
    return DataError(f"image {label}: {found}, allowed are 1 to {cap} pixels", fix=fix)
