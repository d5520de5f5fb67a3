"""``eva_vit_g.pth``: a flat dict of the EVA-CLIP vision tower, in half precision."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.checkpoint.formats.base import below
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.safe import read_tensors
from vlm.checkpoint.strict import NamedTensors
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.vlm import VLM

HEAD_KEYS = ("head.*", "lm_head.*", "norm.*", "fc_norm.*", "mask_token")
"""Keys of the file behind the last block, and of its pretraining."""


def key_map(depth: int, prefix: str = "vision.vit") -> KeyMap:
    """The map for a model that uses the first ``depth`` blocks of the file."""
    stems = ("patch_embed.{rest}", "cls_token", "pos_embed", *(f"blocks.{i}.{{rest}}" for i in range(depth)))
    return KeyMap(
        pairs=tuple((stem, f"{prefix}.{stem}") for stem in stems),
        ignored=(*(f"blocks.{i}.*" for i in range(depth, depth + 40)), *HEAD_KEYS),
    )


@register_checkpoint_format("eva")
class Eva:
    """Fills ``vision.vit``; ignores later blocks, final norm and head; fits the position table to the image size."""

    def __init__(self, into: str | None = None) -> None:
        self.prefix = f"{into or 'vision'}.vit"

    def covered_prefixes(self, model: VLM) -> list[str]:
        """The whole tower."""
        return [self.prefix]

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by published name."""
        return read_tensors(path, "model")

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`."""
        vit = getattr(model.vision, "vit", None)
        if vit is None:
            raise WeightsError(f"{file}: format eva fills an eva_vit, but model.vision is another encoder")
        theirs, unknown = key_map(len(vit.blocks), self.prefix).rename(tensors)
        placed = {ours: tensors[name] for ours, name in theirs.items()}
        table = f"{self.prefix}.pos_embed"
        if table in placed and placed[table].dim() == 3:
            placed[table] = resize_positions(placed[table], vit.pos_embed.shape[1])
        return NamedTensors(file, placed, theirs, unknown, below(model, self.prefix))

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """See :class:`CheckpointFormat`."""
        return "the encoder's sizes under model.vision differ from the file's" if shapes else None


def resize_positions(table: Tensor, count: int) -> Tensor:
    """Fit a position table to another grid: bicubic on the patches, the class position kept.

    Args:
        table: ``[1, 1 + g*g, d]``, class token first.
        count: wanted length ``1 + h*h``.

    Returns:
        ``[1, count, d]``; the very table when the lengths agree or are not of a square grid.
    """
    old, new = round((table.shape[1] - 1) ** 0.5), round((count - 1) ** 0.5)
    if table.shape[1] == count or old * old + 1 != table.shape[1] or new * new + 1 != count:
        return table
    cls, patches = table[:, :1].float(), table[:, 1:].float()
    grid = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)

    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
