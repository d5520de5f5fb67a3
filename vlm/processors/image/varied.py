"""What recipes share that make more, or other, than one square of an image."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vlm.common.bounds import Count, Positive
from vlm.common.errors import ConfigError, DataError
from vlm.common.types import Prepared, Split
from vlm.processors.image.decode import PIXEL_CAP, Opened
from vlm.processors.image.recipe import CLIP_MEAN, CLIP_STD, ImageRecipe, Level, Mean

if TYPE_CHECKING:
    from PIL import Image as PILImage


class VariedRecipe(ImageRecipe):
    """A recipe whose result depends on the size of the image; a subclass says in :meth:`made` how."""

    fixed_size = False

    @dataclass
    class Config:
        """Options of all of them."""

        mean: Sequence[Mean] = CLIP_MEAN
        std: Sequence[Positive] = CLIP_STD
        interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
        max_pixels: Count = PIXEL_CAP
        background: str | list[Level] = "white"  # under transparent pixels: white, black, mean, RGB; keep: no alpha

        pad_color: ClassVar[tuple[int, int, int] | None] = None

        def __post_init__(self) -> None:
            if len(self.mean) != 3 or len(self.std) != 3:
                raise ConfigError(f"image: mean {list(self.mean)}, std {list(self.std)}, expected three numbers each")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.options = config

    def __call__(self, source: Any, name: str = "", rng: random.Random | None = None) -> Any:
        """Decode and transform one image.

        Args:
            source: path, encoded bytes, ``PIL.Image`` or uint8 array ``[h, w]`` or ``[h, w, 3|4]``; or what a recipe
                returned before (passed through).
            name: what to call the image in an error when ``source`` is not a path.
            rng: nothing is drawn from it.

        Returns:
            What :meth:`made` gives: float32 pixels (uint8 after :meth:`as_uint8`).

        Raises:
            DataError: missing, empty, truncated, corrupt, unsupported, too large or too thin; the message names it.
        """
        import torch

        if isinstance(source, Prepared | Split):
            return source
        if isinstance(source, tuple | torch.Tensor):
            found = "images side by side" if isinstance(source, tuple) else "a tensor, whose image is not known"
            raise DataError(f"image {name}: {found}; this recipe reads a path, bytes, PIL image or array")
        opened = Opened(source, name, self.config.max_pixels, self._background)
        image = opened.exact()
        self.transparent += opened.transparent
        self.decoded += opened.size[0] * opened.size[1]
        return self.made(image, opened.label)

    @property
    def draws(self) -> bool:
        """Nothing is drawn."""
        return False

    @abstractmethod
    def made(self, image: PILImage.Image, label: str) -> Prepared | Split:
        """The result for an upright RGB image; ``label`` names it. Raises DataError: it has no sensible result."""

    def resized(self, image: PILImage.Image, height: int, width: int) -> PILImage.Image:
        """``image`` at that size, by the filter of the options."""
        from PIL import Image

        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling[self.config.interpolation.upper()])

    def prepared(self, frames: Sequence[PILImage.Image], image: PILImage.Image) -> Prepared:
        """Frames of one size as one medium of ``image``."""
        import numpy as np
        import torch

        levels = torch.from_numpy(np.stack([np.asarray(frame).transpose(2, 0, 1) for frame in frames]))
        return Prepared(levels if self._levels else self.normalize(levels), (image.height, image.width))
