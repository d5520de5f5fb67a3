"""A vision encoder: the mean colours of patches, projected to a width."""

from dataclasses import dataclass

from torch import Tensor, nn

from vlm import register_vision
from vlm.common.types import Features
from vlm.models.vision.base import check_pixels


@register_vision("patch_pool")
class PatchPool(nn.Module):
    """Average pooling over patches, then one linear layer."""

    @dataclass
    class Config:
        """Options of ``vision: {name: patch_pool}``."""

        image_size: int = 32
        patch_size: int = 8
        width: int = 24

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.width  # width of a token
        self.image_size = config.image_size  # pixels
        self.num_tokens = (config.image_size // config.patch_size) ** 2  # tokens of a frame
        self.pool = nn.AvgPool2d(config.patch_size)
        self.proj = nn.Linear(3, config.width)

    def forward(self, pixels: Tensor) -> Features:
        """``[n, f, 3, h, w]`` -> tokens ``[n, f, v, d]``."""
        check_pixels(pixels, self.image_size)
        colors = self.pool(pixels.flatten(0, 1)).flatten(2).transpose(1, 2)
        return Features(self.proj(colors).unflatten(0, pixels.shape[:2]))
