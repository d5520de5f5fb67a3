"""``eva_vit_g.pth``: a flat dict of the EVA-CLIP vision tower, in half precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat
from vlm.checkpoint.keymap import KeyMap
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.vision.eva import EvaViT
from vlm.models.vlm import VLM

HEAD_KEYS = ("head.*", "lm_head.*", "norm.*", "fc_norm.*", "mask_token")
"""Keys of the file after the last block, and of its pretraining."""


def key_map(depth: int, prefix: str = "vision.vit") -> KeyMap:
    """The map for a model that uses the first ``depth`` blocks of the file."""
    stems = ("patch_embed.{rest}", "cls_token", "pos_embed", *(f"blocks.{i}.{{rest}}" for i in range(depth)))
    return KeyMap(
        pairs=tuple((stem, f"{prefix}.{stem}") for stem in stems),
        ignored=(*(f"blocks.{i}.*" for i in range(depth, depth + 40)), *HEAD_KEYS),
    )


@register_checkpoint_format("eva")
class Eva(CheckpointFormat):
    """Fills ``vision.vit``; ignores later blocks, final norm and head; fits the position table to the image size."""

    part, inner = "vision", "vit"
    shape_hint = "the encoder's sizes under model.vision differ from the file's"

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        if not isinstance(self.target(model), EvaViT):
            raise WeightsError(f"{file}: format eva fills an eva_vit, but {self.into or self.part} is another encoder")
        return key_map(len(self.target(model).vit.blocks), self.prefix)

    def fit(self, model: VLM, placed: dict[str, Tensor], file: str) -> None:
        """Resample the position table ``[1, n, d]``."""
        table = f"{self.prefix}.pos_embed"
        if table in placed and placed[table].dim() == 3:
            placed[table] = resize_positions(placed[table], self.target(model).vit.pos_embed.shape[1])


def resize_positions(table: Tensor, count: int) -> Tensor:
    """A position table ``[1, 1 + g*g, d]``, class token first, for another grid: ``[1, count, d]``, bicubic.

    ``table`` itself when the lengths agree, or when one of them is not 1 and a square.
    """
    old, new = round((table.shape[1] - 1) ** 0.5), round((count - 1) ** 0.5)
    if table.shape[1] == count or old * old + 1 != table.shape[1] or new * new + 1 != count:
        return table
    cls, patches = table[:, :1].float(), table[:, 1:].float()
    grid = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
