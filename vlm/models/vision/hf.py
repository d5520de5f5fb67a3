"""Vision towers of transformers."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.common.bounds import Count
from vlm.common.errors import ConfigError
from vlm.common.registry import register_vision
from vlm.common.types import Features
from vlm.models.layer_hooks import checkpoint_layers
from vlm.models.lora import LoraOptions, inject_lora
from vlm.models.published import sizes
from vlm.models.vision.base import PatchCount, check_native, check_patches, check_pixels
from vlm.models.vision.layers import Layers, combined, combined_width, layers_of
from vlm.models.vision.tower import ASKED, PIXELS, REAL, SHAPES, build_tower, depth_of, read_config

PART = "model.vision"
_taken: ContextVar[dict[int, Tensor] | None] = ContextVar("taken", default=None)
"""Outputs of the chosen blocks of the call that runs in this thread."""


@register_vision("hf_vision")
class HFVision(nn.Module):
    """A vision tower of transformers: SigLIP, DINO, CLIP, InternViT, ... State-dict keys: ``model.*``, its own names.

    ``layer_weights [k]`` is there with ``combine: weights``.
    """

    @dataclass
    class Config:
        """Options of ``vision: {name: hf_vision}``.

        ``path`` is a folder with config.json (of the tower, or of a larger model that has one); ``config`` writes its
        content out instead (model_type and sizes). ``layer`` counts blocks from the end, -1 is the last; with several
        the states are joined (``combine``) in the order given. Blocks after the last chosen one are not built.
        ``image_size`` null means the tower's own; with another one its positions are interpolated as its class does.
        ``native`` takes images of any height and width that divide into patches.

        Example: ``vision: {name: hf_vision, path: /models/siglip2-base-patch16-384, native: true}``
        """

        path: str | None = None
        config: dict[str, Any] | None = None
        image_size: Count | None = None
        native: bool = False
        layer: Layers = -1
        combine: Literal["concat", "mean", "weights"] = "concat"  # weights: a learned mean (arXiv:1802.05365, eq. 1)
        post_norm: bool | None = None  # the tower's last norm after each chosen block; null: if layer is -1
        keep_cls: bool = False
        keep_registers: bool = False
        precision: Literal["fp16", "bf16", "fp32"] = "fp16"
        lora: LoraOptions | None = None
        checkpointing: bool = False

    model: Any

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        inner = read_config(config.path, config.config, PART)
        self.depth = depth_of(inner, PART)
        self.chosen = layers_of(config.layer, config.combine, self.depth, PART)
        self.model, self.tower = build_tower(inner, max(self.chosen) + 1, PART)
        self.image_size: int = config.image_size or self.tower.size
        self._check_sizes()
        self.norm = self._choose_norm()
        if config.combine == "weights":
            self.layer_weights = nn.Parameter(torch.zeros(len(self.chosen)))
        if config.lora is not None:
            inject_lora(self.model, config.lora)
        for index in self.chosen:
            self.blocks()[index].register_forward_hook(partial(_take, index))
        if config.checkpointing:
            checkpoint_layers(self.blocks())
        self.out_dim = combined_width([self.tower.width] * len(self.chosen), config.combine, PART)
        self.prefix = self.tower.cls * config.keep_cls + self.tower.others * config.keep_registers
        self.num_tokens = (self.image_size // self.tower.patch) ** 2 + self.prefix

    def written_out(self) -> Config:
        """See :class:`~vlm.models.protocols.WritesOut`."""
        return replace(self.config, path=None, config=sizes(read_config(self.config.path, self.config.config, PART)))

    def blocks(self) -> Any:
        """The blocks that are built."""
        return self.model.get_submodule(self.tower.blocks)

    def checkpointable_modules(self) -> list[nn.Module]:
        """The blocks, to recompute in the backward pass when the runner asks for it."""
        return list(self.blocks())

    @property
    def varies(self) -> bool:
        """Whether the number of tokens depends on the image (``native``)."""
        return self.config.native

    def counter(self) -> PatchCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return PatchCount(self.tower.patch, self.prefix)

    def forward(self, pixels: Tensor) -> Features:
        """``[n, f, 3, h, w]`` -> tokens ``[n, f, v, out_dim]``; kept class token first, then registers, then patches.

        Raises ConfigError: pixels of a size that it does not take.
        """
        if self.config.native:
            check_native(pixels, self.tower.patch)
        else:
            check_pixels(pixels, self.image_size)
        rows, columns = (side // self.tower.patch for side in pixels.shape[-2:])
        images = pixels.flatten(0, 1)
        before = self.tower.cls + self.tower.others
        states = [self._kept(state.reshape(len(images), -1, state.shape[-1])) for state in self._states(images)]
        if states[0].shape[1] != rows * columns + self.prefix:
            count = states[0].shape[1] - self.prefix + before
            raise ConfigError(f"{PART}: the tower gives {count} tokens for {rows} x {columns} patches; not a ViT")
        weights = self.layer_weights if self.config.combine == "weights" else None
        tokens = combined(states, self.config.combine, weights).unflatten(0, pixels.shape[:2])
        grid = None if self.prefix else torch.tensor([[rows, columns]]).expand(len(pixels), 2)
        return Features(tokens, grid=grid)

    def _states(self, images: Tensor) -> list[Tensor]:
        """Outputs of the chosen blocks, normed if asked for, for ``images [m, 3, h, w]``."""
        found: dict[int, Tensor] = {}
        token = _taken.set(found)
        try:
            self.model(**self._inputs(images))
        finally:
            _taken.reset(token)
        norm = nn.Identity() if self.norm is None else self.model.get_submodule(self.norm)
        return [norm(found[index]) for index in self.chosen]

    def _inputs(self, images: Tensor) -> dict[str, Any]:
        if self.tower.patches:
            patches = patchify(images, self.tower.patch)
            sides = torch.tensor([[side // self.tower.patch for side in images.shape[-2:]]], device=images.device)
            real = torch.ones(patches.shape[:2], dtype=torch.int32, device=images.device)
            return {PIXELS: patches, REAL: real, SHAPES: sides.expand(len(images), 2)}
        own = images.shape[-2] == images.shape[-1] == self.tower.size
        return {PIXELS: images, **({ASKED: not own} if self.tower.sizes == "asked" else {})}

    def _kept(self, state: Tensor) -> Tensor:
        """``state [m, v, d]`` without the class and register tokens that are dropped."""
        cls, others = self.tower.cls, self.tower.others
        kinds = ((self.config.keep_cls, 0, cls), (self.config.keep_registers, cls, cls + others))
        kept = [state[:, start:end] for keep, start, end in kinds if keep and end > start]
        return torch.cat([*kept, state[:, cls + others :]], dim=1)

    def _check_sizes(self) -> None:
        """Raises ConfigError: another size or native sizes for a tower with positions for its own size alone."""
        own, patch, sizes = self.tower.size, self.tower.patch, self.tower.sizes
        if self.image_size != own:
            check_patches(self.image_size, patch)
        if sizes == "own" and (self.config.native or self.image_size != own):
            asked = "native: true" if self.config.native else f"image_size: {self.image_size}"
            raise ConfigError(
                f"{PART}: {asked}, but this tower has positions for {own} x {own} pixels alone",
                fix=f"leave it out, or choose one of {self.model.config.model_type}'s checkpoints of that size",
            )

    def _choose_norm(self) -> str | None:
        """Name of the norm to apply; one that nobody reads is taken out of the model."""
        name, asked = self.tower.norm, self.config.post_norm
        if asked and name is None:
            raise ConfigError(f"{PART}.post_norm is true, but this tower has no norm after its blocks")
        if self.config.layer == -1 if asked is None else asked:
            return name
        if name is not None:
            self.model.set_submodule(name, nn.Identity())
        return None


def patchify(images: Tensor, patch: int) -> Tensor:
    """``[m, 3, h, w]`` -> patches row by row ``[m, v, patch * patch * 3]``, channels last within each."""
    cut = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _take(index: int, module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook of block ``index``."""
    found = _taken.get()
    if found is not None:
        found[index] = output if isinstance(output, Tensor) else output[0]
