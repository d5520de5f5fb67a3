"""Any mode of PIL -> RGB: what becomes of transparent pixels, and of greys with more than 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm.common.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image as PILImage

Colour = tuple[int, int, int]
NAMED: dict[str, Colour] = {"white": (255, 255, 255), "black": (0, 0, 0)}


def background_of(declared: str | Sequence[int], mean: Sequence[float]) -> Colour | None:
    """The colour under transparent pixels; None: ``keep``, the stored colours without their alpha.

    Args:
        declared: ``white``, ``black``, ``mean``, ``keep`` or three levels.
        mean: of the recipe, in [0, 1].

    Raises:
        ConfigError: anything else.
    """
    if declared == "keep":
        return None
    if declared == "mean":
        declared = [int(m * 255) for m in mean]
    colour = NAMED.get(declared, ()) if isinstance(declared, str) else declared
    levels = list(colour) if isinstance(colour, Sequence) else []
    if len(levels) != 3 or not all(type(level) is int and 0 <= level <= 255 for level in levels):
        raise ConfigError(
            f"image: background {declared!r} is not a colour",
            fix="give white, black, mean, keep, or three levels from 0 to 255",
        )
    return levels[0], levels[1], levels[2]


def to_rgb(image: PILImage.Image, background: Colour | None) -> tuple[PILImage.Image, bool]:
    """RGB of the same brightness, and whether a pixel was transparent.

    Greys of 16 bits are scaled from 65535, floats from 1.0. Transparent pixels, whether by an alpha channel, a palette
    or a colour key, lie over ``background``; None drops the alpha.

    Raises ValueError: floats outside 0 to 1.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, False
    alpha = _alpha(image)
    levels = _levels(image)
    if alpha is None or alpha.getextrema()[0] == 255:
        return levels, False
    if background is None:
        return levels, True
    from PIL import Image

    result = Image.new("RGB", image.size, background)
    result.paste(levels, mask=alpha)
    return result, True


def _levels(image: PILImage.Image) -> PILImage.Image:
    """RGB without regard to transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        import numpy as np
        from PIL import Image

        values, top = np.asarray(image, dtype=np.float64), 1.0 if image.mode == "F" else 65535.0
        if image.mode == "F" and not (values.min() >= 0 and values.max() <= top):  # NaN is refused too
            raise ValueError(f"floats from {values.min():.3g} to {values.max():.3g}, expected 0 to 1")
        return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBa", "La"):  # premultiplied
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _alpha(image: PILImage.Image) -> PILImage.Image | None:
    """The alpha channel (mode ``L``), None where there is none."""
    if image.mode in ("RGBa", "La"):
        return image.getchannel("a")
    if image.mode in ("RGBA", "LA", "PA"):
        return image.getchannel("A")
    key = image.info.get("transparency")
    if key is None:
        return None
    if image.mode == "P":
        return image.convert("RGBA").getchannel("A")
    if image.mode in ("1", "L", "RGB") or image.mode.startswith("I"):
        return _keyed(image, key)
    return None


def _keyed(image: PILImage.Image, key: int | bytes | Sequence[int]) -> PILImage.Image | None:
    """Alpha by a colour key: 0 where a pixel has exactly that colour."""
    import numpy as np
    from PIL import Image

    wanted = np.asarray(key if isinstance(key, int) else list(key), dtype=np.int64)
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    if wanted.size != (3 if image.mode == "RGB" else 1):
        return None
    if image.mode == "RGB" and wanted.max() > 255:  # a PNG of 16 bits, of which PIL keeps the upper eight
        wanted = wanted >> 8
    if image.mode == "1":
        wanted = np.where(wanted > 0, 255, 0)
    same = pixels == wanted
    return Image.fromarray(np.where(same.all(-1) if image.mode == "RGB" else same, 0, 255).astype(np.uint8))
