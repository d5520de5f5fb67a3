"""Helpers of the vision encoders."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.common.errors import ConfigError
from vlm.common.types import MediumShape


class Float32LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32; returns the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension of ``x [..., d]``."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.float(), self.bias.float()
            return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def check_patches(image_size: int, patch_size: int) -> None:
    """Raises ConfigError for an image that does not divide into patches."""
    if image_size % patch_size:
        below = max(1, image_size // patch_size) * patch_size
        raise ConfigError(
            f"image_size is {image_size}, expected a multiple of patch_size {patch_size}",
            fix=f"for example {below} or {below + patch_size}",
        )


def check_pixels(pixels: Tensor, image_size: int) -> None:
    """Raises ConfigError unless ``pixels`` are ``[n, f, 3, image_size, image_size]``."""
    if pixels.dim() != 5 or pixels.shape[-2:] != (image_size, image_size):
        raise ConfigError(
            f"the vision encoder takes pixels [n, f, 3, {image_size}, {image_size}], got {list(pixels.shape)}",
            fix="make the image recipe's size equal to model.vision.image_size",
        )


def check_native(pixels: Tensor, patch: int) -> None:
    """Raises ConfigError unless ``pixels`` are ``[n, f, 3, h, w]`` with h and w divisible by ``patch``."""
    if pixels.dim() != 5 or pixels.shape[-2] % patch or pixels.shape[-1] % patch or not pixels.numel():
        raise ConfigError(
            f"the vision encoder takes pixels [n, f, 3, h, w] in multiples of {patch}, got {list(pixels.shape)}",
            fix="let the image recipe round height and width to multiples of the patch",
        )


@dataclass(frozen=True)
class PatchCount:
    """Tokens of an image: one for each whole patch and ``more`` besides; they lie in a grid if there are none."""

    patch: int
    more: int = 0

    def __call__(self, shape: MediumShape) -> MediumShape:
        """``shape`` with its tokens and grid."""
        rows, columns = shape.height // self.patch, shape.width // self.patch
        grid = None if self.more else (rows, columns)
        return dataclasses.replace(shape, tokens=rows * columns + self.more, grid=grid)
