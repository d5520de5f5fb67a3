"""Vision towers of transformers that take the patches of images of any size as one sequence (arXiv:2409.12191)."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.common.bounds import Count
from vlm.common.errors import ConfigError
from vlm.common.registry import register_vision
from vlm.common.types import Features, MediumShape
from vlm.models.hf.config import written
from vlm.models.layer_hooks import check_depth, checkpoint_layers
from vlm.models.lora import LoraOptions, inject_lora
from vlm.models.vision.base import check_native
from vlm.models.vision.tower import read_config, unsupported

PART = "model.vision"
PATCHES, GRID = "hidden_states", "grid_thw"
"""Arguments of ``forward``: flat patches ``[N, 3 * time * patch * patch]``, and ``[m, 3]`` frames, rows and columns."""
MERGER = "merger"
"""The module after the blocks, which a bridge ``patch_merger`` replaces."""


@dataclass(frozen=True)
class FlatCount:
    """Counts the patches of images of any size.

    Attributes:
        patch: side of a patch in pixels.
        time: frames of a video that become one.
    """

    patch: int
    time: int

    def __call__(self, shape: MediumShape) -> MediumShape:
        """``shape`` with the tokens of its frames."""
        grid = (shape.height // self.patch, shape.width // self.patch)
        return dataclasses.replace(shape, frames=-(-shape.frames // self.time), tokens=grid[0] * grid[1], grid=grid)


@register_vision("hf_flat_vision")
class FlatVision(nn.Module):
    """Qwen2-VL's tower and towers built like it, without the module that merges its tokens (see ``patch_merger``).

    State-dict keys: ``model.*``, transformers' own names.
    """

    @dataclass
    class Config:
        """Options of ``vision: {name: hf_flat_vision}``.

        ``path`` is a folder with config.json (of the tower, or of a larger model that has one); ``config`` writes its
        content out instead (model_type and sizes). Height and width of an image are multiples of ``patch_size`` times
        ``spatial_merge_size`` (see ``image: {name: native}``). ``image_size`` is that of a typical image, for
        estimates.

        Example: ``vision: {name: hf_flat_vision, path: /models/qwen2-vl-2b-instruct}``
        """

        path: str | None = None
        config: dict[str, Any] | None = None
        image_size: Count = 448
        precision: Literal["fp16", "bf16", "fp32"] = "fp16"
        lora: LoraOptions | None = None
        checkpointing: bool = False

    model: Any
    varies = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        inner = read_config(config.path, config.config, PART)
        if not hasattr(inner, "embed_dim") or not hasattr(inner, "depth"):
            raise unsupported(PART, inner.model_type, "it is not built like Qwen2-VL's")
        check_depth(inner.depth, PART)
        inner._attn_implementation = "sdpa"
        self.model = class_of(inner)(inner)
        if MERGER not in dict(self.model.named_children()):
            raise unsupported(PART, inner.model_type, "it is not built like Qwen2-VL's")
        self.out_dim: int = inner.embed_dim
        self.patch: int = inner.patch_size
        self.time: int = inner.temporal_patch_size
        self.merge: int = inner.spatial_merge_size
        self.model.merger = nn.Identity()
        self.image_size = config.image_size
        self.num_tokens = (self.image_size // self.patch) ** 2
        if config.lora is not None:
            inject_lora(self.model, config.lora)
        if config.checkpointing:
            checkpoint_layers(self.model.blocks)

    def written_out(self) -> Config:
        """See :class:`~vlm.models.protocols.WritesOut`."""
        config = written(read_config(self.config.path, self.config.config, PART))
        return dataclasses.replace(self.config, path=None, config=config)

    def checkpointable_modules(self) -> list[nn.Module]:
        """The blocks, to recompute in the backward pass when the runner asks for it."""
        return list(self.model.blocks)

    def counter(self) -> FlatCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return FlatCount(self.patch, self.time)

    def forward(self, pixels: Tensor) -> Features:
        """``[n, f, 3, h, w]`` -> tokens ``[n, ceil(f / time), v, d]``, row by row.

        The last frame is repeated where frames do not divide into groups of ``time``; an image so becomes one group.

        Raises ConfigError: height or width is not a multiple of patch times merge size.
        """
        check_native(pixels, self.patch * self.merge)
        n, f, _, height, width = pixels.shape
        missing = -f % self.time
        pixels = torch.cat([pixels, pixels[:, -1:].expand(-1, missing, -1, -1, -1)], 1) if missing else pixels
        grid = (pixels.shape[1] // self.time, height // self.patch, width // self.patch)
        sides = torch.tensor([grid], device=pixels.device).expand(n, 3)
        states = self.model(**{PATCHES: self._patches(pixels), GRID: sides}).last_hidden_state
        tokens = self._by_rows(states.unflatten(0, (n * grid[0], -1)), *grid[1:])
        return Features(tokens.unflatten(0, (n, grid[0])), grid=torch.tensor([grid[1:]]).expand(n, 2))

    def _patches(self, pixels: Tensor) -> Tensor:
        """``[n, f, 3, h, w]`` -> ``[n * f / time * h / patch * w / patch, 3 * time * patch * patch]``.

        Squares of ``merge`` x ``merge`` patches follow one another.
        """
        side = (self.merge, self.patch)
        cut = pixels.unflatten(4, (-1, *side)).unflatten(3, (-1, *side)).unflatten(1, (-1, self.time))
        # n, groups, time, 3, rows, merge, patch, columns, merge, patch
        return cut.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).flatten(6).flatten(0, 5)

    def _by_rows(self, states: Tensor, rows: int, columns: int) -> Tensor:
        """Tokens ``[m, v, d]`` from squares that follow one another to rows of the image."""
        cut = states.unflatten(1, (rows // self.merge, columns // self.merge, self.merge, self.merge))
        return cut.transpose(2, 3).flatten(1, 4)


def class_of(config: Any) -> Any:
    """transformers' class of a tower. Raises ConfigError: it has none that takes flat patches."""
    from transformers import PreTrainedModel

    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    for cls in vars(module).values():
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and cls.config_class is type(config):
            arguments = inspect.signature(cls.forward).parameters
            if {PATCHES, GRID} <= set(arguments):
                return cls
    raise ConfigError(
        f"{PART}: a {config.model_type} does not take patches as one sequence",
        fix="hf_flat_vision runs Qwen2-VL's tower; other towers of transformers: {name: hf_vision}",
    )
