"""Images -> ``[3, h, w]`` float32 tensors.

With ``decode: exact`` the evaluation transform is bit-equal to the published ones, which use PIL: torchvision's
``Resize (-> CenterCrop) -> ToTensor -> Normalize`` and transformers' ``CLIPImageProcessor``.

``decode: fast`` lets OpenCV decode a JPEG at the smallest of 1/1, 1/2, 1/4, 1/8 that is at least the final size, and
torch resize it (antialiased, in integers). Per image to 224 on one core (``benchmarks/image_decode.py``):

============  =========  ========  =============================
JPEG          exact      fast      mean difference of 256 levels
============  =========  ========  =============================
640 x 480     3.6 ms     1.4 ms    0.9
1280 x 960    13.7 ms    3.4 ms    0.7
============  =========  ========  =============================
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from vlm.common.bounds import Count, Positive, Range, Share
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_image, register_processor
from vlm.processors.image.colour import background_of
from vlm.processors.image.decode import PIXEL_CAP, Opened
from vlm.processors.image.geometry import Plan, centre, plan_crop

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image as PILImage

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Level = Annotated[int, Range(0, 255)]
Mean = Annotated[float, Range(-255, 255)]

MAX_PAD = 20_000
"""Longest side of an image that is padded to a square, which then takes 1.2 GB."""


@register_image("recipe")
class ImageRecipe:
    """What happens to an image between the file and the vision encoder; pickles into loader workers.

    One object holds the evaluation transform, which chat uses too, and the optional ``train`` part.

    Recipes that make more than one square of an image: :class:`~vlm.processors.image.varied.VariedRecipe`.

    Attributes:
        splits: whether an image can become several media with text between them.
        fixed_size: whether every image becomes one ``[3, size, size]``.
        makes_frames: whether what becomes of an image can be a frame of a video.
        transparent: how many of the images so far had transparent pixels.
        decoded: pixels of all images so far.
    """

    splits: ClassVar[bool] = False
    fixed_size: ClassVar[bool] = True
    makes_frames: ClassVar[bool] = True

    @dataclass
    class Train:
        """Training only: a random crop, resized to the square, and a random horizontal flip."""

        scale: tuple[Positive, Positive] = (0.9, 1.0)  # share of the area that is kept
        ratio: tuple[Positive, Positive] = (0.75, 4 / 3)  # width / height of the part
        flip: Share = 0.0  # probability; keep it 0 if texts say left and right

        def __post_init__(self) -> None:
            self.scale, self.ratio = tuple(self.scale), tuple(self.ratio)  # type: ignore[assignment]
            if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
                raise ConfigError(f"scale {self.scale}, ratio {self.ratio}: wanted 0 < low <= high, scale up to 1")
            if not 0 <= self.flip <= 1:
                raise ConfigError(f"flip is {self.flip}, wanted a probability")

    @dataclass
    class Config:
        """Size in pixels (square); mean and standard deviation per channel, for levels in [0, 1].

        Example: ``image: {size: 448, resize: pad, train: {scale: [0.5, 1.0]}}``
        """

        size: Count = 224
        mean: Sequence[Mean] = CLIP_MEAN
        std: Sequence[Positive] = CLIP_STD
        interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
        max_pixels: Count = PIXEL_CAP
        resize: Literal["stretch", "shorter", "pad"] = "stretch"  # shorter: shorter side to size, then the centre
        crop_rounding: Literal["round", "floor"] = "round"  # of the centre: as torchvision or as transformers
        pad_color: Sequence[Level] | None = None  # RGB of the border that makes a square; None: the mean
        background: str | list[Level] = "white"  # under transparent pixels: white, black, mean, RGB; keep: no alpha
        train: ImageRecipe.Train | None = None  # None: training uses the evaluation transform
        decode: Literal["exact", "fast"] = "exact"

        def __post_init__(self) -> None:
            if isinstance(self.train, Mapping):  # a stored composition
                self.train = ImageRecipe.Train(**self.train)
            if self.size < 1 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
                raise ConfigError(
                    f"image: size {self.size}, mean {list(self.mean)}, std {list(self.std)} cannot be used",
                    fix="give a size >= 1 and three means and three positive deviations",
                )
            color = [int(m * 255) for m in self.mean] if self.pad_color is None else list(self.pad_color)
            if len(color) != 3 or min(color) < 0 or max(color) > 255:
                raise ConfigError(f"image: pad_color {color} is not a colour", fix="give three levels from 0 to 255")
            background_of(self.background, self.mean)

    def __init__(self, config: Config) -> None:
        self.config = config
        self._color = tuple([int(m * 255) for m in config.mean] if config.pad_color is None else config.pad_color)
        self._background = background_of(config.background, config.mean)
        self._levels = False
        self.transparent = self.decoded = 0

    def __call__(self, source: Any, name: str = "", rng: random.Random | None = None) -> torch.Tensor:
        """Decode and transform one image.

        Args:
            source: path, encoded bytes, ``PIL.Image``, uint8 array ``[h, w]`` or ``[h, w, 3|4]``, or a
                float tensor ``[3, size, size]`` that a recipe returned before (passed through); a tuple of these
                is shown side by side as one image (see :func:`joined`).
            name: what to call the image in an error when ``source`` is not a path.
            rng: draws the crop and the flip of the ``train`` part; None: the evaluation transform.

        Returns:
            ``[3, size, size]`` float32.

        Raises:
            DataError: missing, empty, truncated, corrupt, unsupported or too large; the message names it.
        """
        import numpy as np
        import torch

        if isinstance(source, torch.Tensor):
            return self._checked(source, name)
        if isinstance(source, tuple):
            return joined([self(part, name, rng) for part in source])
        opened = Opened(source, name, self.config.max_pixels, self._background)
        plan = self._plan(opened.size, rng)
        if plan.size[0] * plan.size[1] > self.config.max_pixels or plan.pad > MAX_PAD:
            result = f"{opened.size[0]} x {opened.size[1]} pixels, too long and thin for this recipe"
            raise DataError(f"image {opened.label}: {result}", fix="crop it")
        if self.config.decode == "fast":
            factor = plan.reduction(opened.size)
            pixels = self._fast(opened.reduced(factor), plan.reduced(factor))
        else:
            pixels = self._exact(opened.exact(), plan)
        self.transparent += opened.transparent
        self.decoded += opened.size[0] * opened.size[1]
        pixels = pixels[:, ::-1] if plan.flip else pixels
        levels = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
        return levels if self._levels else self.normalize(levels)

    @property
    def draws(self) -> bool:
        """Whether training changes an image at random."""
        return self.config.train is not None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the pixels."""
        import torch

        return torch.uint8 if self._levels else torch.float32

    def as_uint8(self) -> ImageRecipe:
        """A copy that gives uint8, for the way from a loader worker; :meth:`normalize` finishes them."""
        other = copy.copy(self)
        other._levels = True
        return other

    def normalize(self, levels: torch.Tensor, pin_memory: bool = False) -> torch.Tensor:
        """uint8 levels ``[..., 3, h, w]`` -> float32; other dtypes are returned unchanged."""
        import torch

        if levels.dtype != torch.uint8:
            return levels
        mean, std = torch.tensor([list(self.config.mean), list(self.config.std)], dtype=torch.float32)[..., None, None]
        out = torch.empty(levels.shape, dtype=torch.float32, pin_memory=pin_memory)
        images = zip(out.view(-1, *levels.shape[-3:]), levels.reshape(-1, *levels.shape[-3:]), strict=True)
        for there, image in images:  # one by one, so that an image stays in the CPU's cache
            there.copy_(image).div_(255).sub_(mean).div_(std)
        return out

    def _plan(self, size: tuple[int, int], rng: random.Random | None) -> Plan:
        """The steps for an upright image of ``size`` (width, height)."""
        side, train = self.config.size, self.config.train
        if rng is not None and train is not None:
            box = plan_crop(size, train.scale, train.ratio, rng)
            return Plan((side, side), box=box, flip=rng.random() < train.flip)
        if self.config.resize == "shorter":
            return centre(size, side, self.config.crop_rounding)
        return Plan((side, side), pad=max(size) if self.config.resize == "pad" else 0)

    def _exact(self, image: PILImage.Image, plan: Plan) -> np.ndarray:
        """``[size, size, 3]`` uint8 through PIL."""
        import numpy as np
        from PIL import Image

        if plan.box is not None:
            image = image.crop(plan.box)
        if plan.pad and image.size != (plan.pad, plan.pad):
            square = Image.new("RGB", (plan.pad, plan.pad), self._color)
            square.paste(image, ((plan.pad - image.width) // 2, (plan.pad - image.height) // 2))
            image = square
        if image.size != plan.size:
            image = image.resize(plan.size, Image.Resampling[self.config.interpolation.upper()])
        if plan.corner is not None:
            left, top = plan.corner
            image = image.crop((left, top, left + self.config.size, top + self.config.size))
        return np.asarray(image)

    def _fast(self, pixels: np.ndarray, plan: Plan) -> np.ndarray:
        """The same on an array, resized by torch; one of 256 levels off where PIL rounds the other way."""
        import numpy as np
        import torch
        from PIL import Image

        if plan.pad or self.config.interpolation not in ("bicubic", "bilinear"):
            return self._exact(Image.fromarray(pixels), plan)
        if plan.box is not None:
            left, top, right, bottom = plan.box
            pixels = pixels[top:bottom, left:right]
        width, height = plan.size
        if pixels.shape[:2] != (height, width):
            planes = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
            mode = self.config.interpolation
            resized = torch.nn.functional.interpolate(planes, (height, width), mode=mode, antialias=True)
            pixels = resized[0].permute(1, 2, 0).numpy()
        if plan.corner is not None:
            left, top = plan.corner
            pixels = pixels[top : top + self.config.size, left : left + self.config.size]
        return pixels

    def _checked(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        want = (3, self.config.size, self.config.size)
        if tuple(tensor.shape) != want or not tensor.is_floating_point():
            raise DataError(f"image {name or 'tensor'}: {tensor.dtype} {tuple(tensor.shape)}, wanted float {want}")
        if not bool(tensor.isfinite().all()):
            raise DataError(f"image {name or 'tensor'}: pixels that are not numbers (NaN or infinity)")
        return tensor.float()


@register_processor("blip2_image_train")
class Blip2ImageTrain(ImageRecipe):
    """The published training transform, which is the evaluation transform: no crop, no flip."""


@register_processor("blip2_image_eval")
class Blip2ImageEval(ImageRecipe):
    """The published evaluation transform."""


def joined(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images ``[3, size, size]`` side by side, squeezed to the width of one by dropping columns (nearest).

    The published Multimodal-GPT shows the two photographs of NLVR2 so.
    """
    import torch
    import torch.nn.functional as F

    wide = torch.cat(list(images), dim=2)
    return F.interpolate(wide[None], size=tuple(images[0].shape[1:]), mode="nearest")[0]
