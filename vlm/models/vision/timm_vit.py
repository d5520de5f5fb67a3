"""Models of timm: transformers over patches and convolutional networks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.common.bounds import Count
from vlm.common.errors import ConfigError
from vlm.common.registry import register_vision
from vlm.common.types import Features, MediumShape
from vlm.models.lora import LoraOptions, inject_lora
from vlm.models.vision.base import check_native, check_patches, check_pixels
from vlm.models.vision.layers import Layers, combined, combined_width, layers_of

FILES = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
"""Options of ``timm.create_model`` with which it downloads or unpickles weights itself."""
FAULTS = (TypeError, ValueError, RuntimeError, AssertionError, IndexError, AttributeError)
"""What timm raises for options and sizes that a model does not take."""


@dataclass(frozen=True)
class StrideCount:
    """Tokens of an image: one for each ``stride`` pixels in either direction, rounded up, and ``more`` besides."""

    stride: int
    more: int

    def __call__(self, shape: MediumShape) -> MediumShape:
        """``shape`` with its tokens and grid."""
        rows, columns = -(-shape.height // self.stride), -(-shape.width // self.stride)
        grid = None if self.more else (rows, columns)
        return dataclasses.replace(shape, tokens=rows * columns + self.more, grid=grid)


@register_vision("timm")
class TimmVision(nn.Module):
    """A model of timm, a transformer over patches or a convolutional network. State-dict keys: ``model.*``, timm's own.

    ``layer_weights [k]`` is there with ``combine: weights``.

    Attributes:
        unbuilt: names of timm's own state dict that ``layer`` leaves out.
    """

    @dataclass
    class Config:
        """Options of ``vision: {name: timm}``; ``options`` goes to ``timm.create_model``.

        ``image_size`` null means the model's own. ``native`` takes images of any height and width that the model can
        read. ``keep_prefix`` keeps class and register tokens. ``layer`` null means what ``forward_features`` gives,
        the final norm included; else it counts blocks (of a transformer) or stages (of a convolutional network) from
        the end, -1 is the last. With several the features are joined (``combine``), which must be of one grid.

        Example: ``vision: {name: timm, model: vit_small_patch16_224, image_size: 336}``
        """

        model: str = "vit_base_patch16_224"
        image_size: Count | None = None
        native: bool = False
        layer: Layers | None = None
        combine: Literal["concat", "mean", "weights"] = "concat"  # weights: a learned mean (arXiv:1802.05365, eq. 1)
        post_norm: bool = False  # the final norm after each chosen block
        keep_prefix: bool = True
        precision: Literal["fp16", "bf16", "fp32"] = "fp16"
        checkpointing: bool = False
        lora: LoraOptions | None = None
        options: dict[str, Any] = field(default_factory=dict)

        def __post_init__(self) -> None:
            """Raises ConfigError: a model that timm does not know, or an option that makes it read files of its own."""
            import timm

            if taken := sorted(FILES & set(self.options)):
                raise ConfigError(f"options.{taken[0]} is not allowed; name weight files under model.weights")
            if self.post_norm and self.layer is None:
                raise ConfigError("post_norm goes with layer; without it the final norm is included")
            if not timm.is_model(self.model):
                near = ", ".join(timm.list_models(f"*{self.model.split('.')[0].split('_')[0]}*")[:5])
                raise ConfigError(f"model: timm has no {self.model!r}" + (f" (some it has: {near})" if near else ""))

    model: Any

    def __init__(self, config: Config) -> None:
        super().__init__()
        import timm

        self.config = config
        trial, options = tried(config)
        self.chosen: list[int] = []
        if config.layer is not None:
            self.chosen = layers_of(config.layer, config.combine, len(trial.feature_info), "model.vision")
        self.image_size: int = config.image_size or size_of(trial)
        self.prefix_tokens: int = getattr(trial, "num_prefix_tokens", 0)
        self.stride: int = trial.feature_info[max(self.chosen, default=-1)]["reduction"]
        self.more = self.prefix_tokens if config.keep_prefix else 0
        grid, self.out_dim = self._examine(trial, self.image_size, self.image_size)
        if config.native:
            self._examine(trial, 2 * self.stride, 4 * self.stride)
        created = partial(timm.create_model, config.model, pretrained=False, num_classes=0)
        self.model = created(**options, **config.options)
        whole = set(self.model.state_dict())
        if self.chosen:
            self.model.prune_intermediate_layers(self.chosen, prune_norm=not config.post_norm)
        self.unbuilt = frozenset(f"model.{name}" for name in whole - set(self.model.state_dict()))
        if config.combine == "weights":
            self.layer_weights = nn.Parameter(torch.zeros(len(self.chosen)))
        if config.checkpointing:
            self.model.set_grad_checkpointing(True)
        if config.lora is not None:
            inject_lora(self.model, config.lora)
        self.num_tokens = grid[0] * grid[1] + self.more

    def blocks(self) -> nn.ModuleList:
        """The blocks of a transformer, for LoRA, checkpointing and tests."""
        return self.model.blocks

    @property
    def varies(self) -> bool:
        """Whether the number of tokens depends on the image (``native``)."""
        return self.config.native

    def counter(self) -> StrideCount:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return StrideCount(self.stride, self.more)

    def fitted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`~vlm.models.protocols.FitsFiles`: a table of absolute positions, resampled as timm does it."""
        from timm.layers import resample_abs_pos_embed

        name = "model.pos_embed"
        ours, patch_embed = dict(self.named_parameters()).get(name), getattr(self.model, "patch_embed", None)
        table = tensors.get(name)
        if ours is None or table is None or ours.shape == table.shape or table.dim() != 3 or patch_embed is None:
            return tensors
        rows, columns = patch_embed.grid_size
        before = ours.shape[1] - rows * columns  # class and register tokens that have a position
        if isqrt(table.shape[1] - before) ** 2 != table.shape[1] - before or ours.shape[2] != table.shape[2]:
            return tensors
        return tensors | {name: resample_abs_pos_embed(table, [rows, columns], num_prefix_tokens=before)}

    def forward(self, pixels: Tensor) -> Features:
        """``[n, f, 3, h, w]`` -> tokens ``[n, f, v, out_dim]``, kept class and register tokens first.

        Raises ConfigError: pixels of another size.
        """
        if self.config.native:
            check_native(pixels, self.stride)
        else:
            check_pixels(pixels, self.image_size)
        states, grid = self._states(self.model, pixels.flatten(0, 1))
        weights = self.layer_weights if self.config.combine == "weights" else None
        tokens = combined(states, self.config.combine, weights)
        found = None if self.more else torch.tensor([grid]).expand(len(pixels), 2)
        return Features(tokens.unflatten(0, pixels.shape[:2]), grid=found)

    def _states(self, model: Any, images: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """``[m, 3, h, w]`` -> states ``[m, v, d]`` of each chosen layer, and rows and columns of those after a prefix.

        Raises ConfigError: the model does not give one grid of features.
        """
        if self.chosen:
            return self._intermediate(model, images)
        found, start = model.forward_features(images), self.prefix_tokens - self.more
        if isinstance(found, Tensor) and found.dim() == 3:
            return [found[:, start:]], (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        if not isinstance(found, Tensor) or found.dim() != 4:
            raise ConfigError(f"model.vision.model: {self.config.model!r} does not give one grid of features")
        maps = found.movedim(-1, 1) if getattr(model, "output_fmt", "NCHW") == "NHWC" else found
        return [maps.flatten(2).transpose(1, 2)], (maps.shape[2], maps.shape[3])

    def _intermediate(self, model: Any, images: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """As :meth:`_states`, of the chosen blocks or stages."""
        order, options = sorted(self.chosen), {"return_prefix_tokens": True} if self.more else {}
        found = model.forward_intermediates(
            images, indices=order, norm=self.config.post_norm, output_fmt="NCHW", intermediates_only=True, **options
        )
        maps = [value[0] if self.more else value for value in found]
        grids = sorted({(each.shape[2], each.shape[3]) for each in maps})
        if len(grids) > 1:
            text = ", ".join(f"{rows} x {columns}" for rows, columns in grids)
            raise ConfigError(f"model.vision.layer: these layers have features of different grids ({text})")
        states = [each.flatten(2).transpose(1, 2) for each in maps]
        if self.more:
            states = [torch.cat([value[1], state], dim=1) for value, state in zip(found, states, strict=True)]
        return [states[order.index(index)] for index in self.chosen], grids[0]

    def _examine(self, model: Any, height: int, width: int) -> tuple[tuple[int, int], int]:
        """Grid and width of the tokens of an image, found out on the device ``meta``.

        Raises ConfigError: the model does not give one grid of features, or not for this size.
        """
        name = f"model.vision.model: {self.config.model!r}"
        try:
            with torch.device("meta"):
                states, grid = self._states(model, torch.empty(1, 3, height, width))
        except FAULTS as error:
            text = f"{name} does not take images of {height} x {width} pixels ({error})"
            raise ConfigError(text, fix="choose another image_size, or leave out native") from error
        if any(grid[0] * grid[1] + self.more != state.shape[1] for state in states):
            raise ConfigError(f"{name} does not give one grid of features")
        return grid, combined_width([state.shape[2] for state in states], self.config.combine, "model.vision")


def tried(config: TimmVision.Config) -> tuple[Any, dict[str, Any]]:
    """The model on the device ``meta``, and the options that it takes besides ``config.options``.

    A transformer wants to know the size of its images, or that they have any size; a convolutional network does not.

    Raises ConfigError: timm cannot build it, or its images do not divide into patches.
    """
    import timm

    size: dict[str, Any] = {} if config.image_size is None else {"img_size": config.image_size}
    for more in ({**size, "dynamic_img_size": True}, size, {}) if config.native else (size, {}):
        try:
            with torch.device("meta"):
                model: Any = timm.create_model(config.model, pretrained=False, num_classes=0, **more, **config.options)
        except TypeError as error:
            if not more or "unexpected keyword" not in str(error):
                raise
            continue
        break
    patch_embed: Any = getattr(model, "patch_embed", None)
    if patch_embed is not None and hasattr(patch_embed, "img_size"):
        check_patches((patch_embed.img_size or [config.image_size or 0])[0], patch_embed.patch_size[0])
    return model.eval(), more


def size_of(model: Any) -> int:
    """Side of the images that a model of timm was made for."""
    patch_embed: Any = getattr(model, "patch_embed", None)
    own = getattr(patch_embed, "img_size", None)
    return own[0] if own else model.pretrained_cfg["input_size"][-1]
