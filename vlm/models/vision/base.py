"""Helpers of the vision encoders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.common.errors import ConfigError


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
