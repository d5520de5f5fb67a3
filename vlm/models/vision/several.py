"""Several vision encoders side by side (arXiv:2402.07865, section 4.3; arXiv:2406.16860, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.common.bounds import Count, Positive
from vlm.common.errors import ConfigError
from vlm.common.registry import config_class, register_vision, resolve
from vlm.common.types import Features
from vlm.config.schema import Report, read
from vlm.models.counting import grid_of
from vlm.models.protocols import CountsTokens, NamesLayers, WritesOut
from vlm.models.vision.base import check_pixels

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""The image recipe's own defaults."""
PART = "model.vision"


@dataclass
class Levels:
    """Mean and standard deviation per channel, for levels in [0, 1]."""

    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[Positive] = CLIP_STD

    def __post_init__(self) -> None:
        """Raises ConfigError: not three of each."""
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ConfigError(f"mean {list(self.mean)}, std {list(self.std)}: expected three of each")


@dataclass
class Entry:
    """One of the encoders: its class, its options, and the levels of the images that it wants."""

    cls: Any
    config: Any
    levels: Levels


@register_vision("several")
class Several(nn.Module):
    """Several encoders that see the same image, each in its own size and normalisation; their tokens are joined.

    The recipe makes one image, in the largest of the sizes; the others are resized from it here. So a medium stays one
    tensor, which is batched, cached and counted like any other, and an encoder of the recipe's size and normalisation
    sees exactly what it would see alone. State-dict keys: ``encoders.<i>.*``; ``projections.<i>.*`` with ``width``.
    """

    @dataclass
    class Config:
        """Options of ``vision: {name: several}``.

        ``encoders`` are vision encoders with their options, and with ``mean`` and ``std`` where those of their images
        are not the recipe's, which ``mean`` and ``std`` repeat here. ``combine: channels`` puts the encoders' tokens
        of one place side by side in one wide token; with another number of tokens each, ``grid`` resizes all to that
        many rows and columns. ``tokens`` puts them one after the other; for widths that differ, ``width`` projects
        each to a common one (trained by ``vision.projections.*``). Weight files go ``into: vision.encoders.0``.

        Example: ``vision: {name: several, encoders: [{name: clip, path: A, layer: -2}, {name: hf_vision, path: B}]}``
        """

        encoders: list[dict[str, Any]]
        combine: Literal["channels", "tokens"] = "channels"
        grid: Count | None = None
        width: Count | None = None
        image_size: Count | None = None  # of the recipe; null: the largest of the encoders'
        mean: Sequence[float] = CLIP_MEAN  # of the recipe
        std: Sequence[Positive] = CLIP_STD
        interpolation: Literal["bicubic", "bilinear"] = "bicubic"
        precision: Literal["fp16", "bf16", "fp32"] = "fp16"

        def __post_init__(self) -> None:
            """Raises ConfigError: an encoder or its options are not usable, or options that contradict each other."""
            if self.combine == "channels" and self.width is not None:
                raise ConfigError("width goes with combine: tokens; side by side the widths need not agree")
            if self.combine == "tokens" and self.grid is not None:
                raise ConfigError("grid goes with combine: channels; one after the other any number of tokens will do")
            self.levels, self.entries()

        @property
        def levels(self) -> Levels:
            """Those of the recipe. Raises ConfigError: not three of each."""
            return Levels(self.mean, self.std)

        def entries(self) -> list[Entry]:
            """The encoders, with their options checked. Raises ConfigError: as above."""
            if len(self.encoders) < 2:
                raise ConfigError(f"encoders has {len(self.encoders)} entries, expected two or more")
            report = Report()
            found = [self._entry(index, options, report) for index, options in enumerate(self.encoders)]
            report.raise_if_any(PART)
            return [entry for entry in found if entry is not None]

        def _entry(self, index: int, options: dict[str, Any], report: Report) -> Entry | None:
            path = ("encoders", index)
            own = {key: value for key, value in options.items() if key not in ("name", "mean", "std")}
            if "precision" in own or options.get("name") == "several":
                report.add(path, "precision is an option of the whole, and an encoder cannot be `several` itself")
                return None
            try:
                cls = resolve("vision", str(options.get("name")))
            except ConfigError as error:
                report.add((*path, "name"), str(error))
                return None
            given = {key: options.get(key, getattr(self, key)) for key in ("mean", "std")}
            levels = read(Levels, given, path, report)
            kind = config_class(cls)
            config = None if kind is None else read(kind, own, path, report)
            return None if levels is None else Entry(cls, config, levels)

    encoders: Any

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.entries = config.entries()
        self.encoders = nn.ModuleList([entry.cls(entry.config) for entry in self.entries])
        for encoder in self.encoders:
            if isinstance(encoder, CountsTokens) and encoder.varies:
                raise ConfigError(f"{PART}: encoders side by side see images of one size", fix="leave out native")
        self.image_size: int = config.image_size or max(encoder.image_size for encoder in self.encoders)
        widths = [encoder.out_dim for encoder in self.encoders]
        self.num_tokens = self._count()
        if config.combine == "channels":
            self.out_dim: int = sum(widths)
            return
        if config.width is None and len(set(widths)) > 1:
            text = f"{PART}: tokens of widths {', '.join(map(str, widths))} cannot follow one another"
            raise ConfigError(text, fix=f"width: {max(widths)} projects each to a common width; or combine: channels")
        self.out_dim = config.width or widths[0]
        if config.width is not None:
            self.projections = nn.ModuleList([nn.Linear(width, config.width) for width in widths])

    def written_out(self) -> Config:
        """See :class:`~vlm.models.protocols.WritesOut`."""
        found = zip(self.config.encoders, self.entries, self.encoders, strict=True)
        return dataclasses.replace(self.config, encoders=[written_out(*each) for each in found])

    def checkpointable_modules(self) -> list[nn.Module]:
        """The blocks of the encoders that name theirs, to recompute in the backward pass if the runner asks for it."""
        named = [encoder for encoder in self.encoders if isinstance(encoder, NamesLayers)]
        return [module for encoder in named for module in encoder.checkpointable_modules()]

    def forward(self, pixels: Tensor) -> Features:
        """``[n, f, 3, h, w]`` -> ``[n, f, v, out_dim]``. Raises ConfigError: pixels of another size."""
        check_pixels(pixels, self.image_size)
        pairs = zip(self.encoders, self.entries, strict=True)
        found = [encoder(self._seen(pixels, encoder.image_size, entry)) for encoder, entry in pairs]
        if self.config.combine == "tokens":
            tokens = [features.tokens for features in found]
            if self.config.width is not None:
                tokens = [project(t) for project, t in zip(self.projections, tokens, strict=True)]
            return Features(torch.cat(tokens, dim=2))
        if self.config.grid is None:
            grids = [features.grid for features in found]
            same = all(grid is not None and torch.equal(grid, grids[0]) for grid in grids)
            return Features(torch.cat([f.tokens for f in found], dim=-1), grid=grids[0] if same else None)
        side = self.config.grid
        tokens = [resized(features, side) for features in found]
        return Features(torch.cat(tokens, dim=-1), grid=torch.full((len(pixels), 2), side))

    def _seen(self, pixels: Tensor, size: int, entry: Entry) -> Tensor:
        """The images as one encoder wants them: its size, its mean and deviation."""
        theirs, own = self.config.levels, entry.levels
        values = [list(each) for each in (theirs.mean, theirs.std, own.mean, own.std)]
        if values[:2] == values[2:] and size == self.image_size:
            return pixels
        mean, std, own_mean, own_std = (
            torch.tensor(value, dtype=torch.float32, device=pixels.device).view(3, 1, 1) for value in values
        )
        levels = pixels.flatten(0, 1).float() * std + mean
        if size != self.image_size:
            resized = F.interpolate(levels, size=(size, size), mode=self.config.interpolation, antialias=True)
            levels = resized.clamp(0, 1)
        return ((levels - own_mean) / own_std).unflatten(0, pixels.shape[:2]).to(pixels.dtype)

    def _count(self) -> int:
        """Tokens of a frame. Raises ConfigError: numbers of tokens that cannot be put side by side."""
        counts = [encoder.num_tokens for encoder in self.encoders]
        if self.config.combine == "tokens":
            return sum(counts)
        if self.config.grid is None:
            if len(set(counts)) > 1:
                raise ConfigError(
                    f"{PART}: {', '.join(map(str, counts))} tokens cannot be put side by side",
                    fix=f"drop class tokens (keep_cls: false), or grid: {isqrt(max(counts))} resizes all to one grid",
                )
            return counts[0]
        if odd := [count for count in counts if isqrt(count) ** 2 != count]:
            raise ConfigError(
                f"{PART}.grid: {odd[0]} tokens are not a square", fix="drop class tokens (keep_cls: false)"
            )
        return self.config.grid**2


def written_out(options: dict[str, Any], entry: Entry, encoder: Any) -> dict[str, Any]:
    """The options of one encoder with what its folder says among them."""
    if not isinstance(encoder, WritesOut):
        return options
    before, after = vars(entry.config), vars(encoder.written_out())
    changed = {key: value for key, value in after.items() if value != before[key]}
    return {key: value for key, value in (options | changed).items() if value is not None}


def resized(features: Features, side: int) -> Tensor:
    """Tokens ``[n, f, v, d]`` of a grid, resized to ``[n, f, side * side, d]``; their own if they are as many."""
    rows, columns = grid_of(features)
    if (rows, columns) == (side, side):
        return features.tokens
    maps = features.tokens.flatten(0, 1).transpose(1, 2).unflatten(2, (rows, columns))
    maps = F.interpolate(maps, size=(side, side), mode="bilinear", antialias=True)
    return maps.flatten(2).transpose(1, 2).unflatten(0, features.tokens.shape[:2])
