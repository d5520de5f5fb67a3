"""The vision tower of CLIP (arXiv:2103.00020), any size."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from vlm.common.bounds import Count, Range
from vlm.common.errors import ConfigError, WeightsError
from vlm.common.file_kind import mistaken
from vlm.common.paths import inner_folder
from vlm.common.registry import register_vision
from vlm.common.types import Features
from vlm.models.layer_hooks import check_depth, checkpoint_layers
from vlm.models.lora import LoraOptions, inject_lora
from vlm.models.vision.base import check_patches, check_pixels

FOLDERS = ("vision_encoder", "image_encoder", "image_encoer")
"""Subfolders in which a model saved in parts keeps its vision tower; one is misspelt in a published guide."""


@register_vision("clip")
class Clip(nn.Module):
    """Token states of one block of a CLIP ViT. State-dict keys: ``model.*`` (transformers' names)."""

    @dataclass
    class Config:
        """Options of ``vision: {name: clip}``.

        ``path`` is a folder with config.json (of a whole CLIP, of its vision tower, or of a model saved in parts);
        ``config`` writes the sizes out instead. ``layer`` counts blocks from the end: -1 is the last, -2 the one
        before; later blocks are not built. ``post_layernorm`` applies the final norm to every token.

        Example: ``vision: {name: clip, path: /models/clip-vit-large-patch14, layer: -2}``
        """

        path: str | None = None
        config: dict[str, Any] | None = None
        image_size: Count | None = None
        layer: Annotated[int, Range(most=-1)] = -1
        post_layernorm: bool = False
        keep_cls: bool = True
        precision: Literal["fp16", "bf16", "fp32"] = "fp16"
        lora: LoraOptions | None = None
        checkpointing: bool = False

    model: Any

    def __init__(self, config: Config) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        self.config = config
        sizes = read_sizes(config)
        inner: Any = CLIPVisionConfig(**sizes)
        if config.path is None or config.image_size is not None:
            check_patches(inner.image_size, inner.patch_size)
        depth = inner.num_hidden_layers
        check_depth(depth, "model.vision")
        if not -depth <= config.layer <= -1:
            raise ConfigError(
                f"model.vision.layer is {config.layer}, allowed: -{depth} to -1 (the last of {depth} blocks)"
            )
        inner.num_hidden_layers = depth + 1 + config.layer
        inner._attn_implementation = "sdpa"
        self.model = CLIPVisionModel(inner)
        if not config.post_layernorm:
            self.model.post_layernorm = nn.Identity()
        if config.lora is not None:
            inject_lora(self.model, config.lora)
        if config.checkpointing:
            checkpoint_layers(self.blocks())
        self.out_dim: int = inner.hidden_size
        self.image_size: int = inner.image_size
        self.num_tokens = (inner.image_size // inner.patch_size) ** 2 + int(config.keep_cls)

    def written_out(self) -> Config:
        """See :class:`~vlm.models.protocols.WritesOut`."""
        return replace(self.config, path=None, image_size=None, config=read_sizes(self.config))

    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, for checkpointing and tests."""
        return self.model.encoder.layers

    def forward(self, pixels: Tensor) -> Features:
        """``[n, f, 3, h, w]`` -> ``[n, f, num_tokens, out_dim]``, the class token first; errors: ``check_pixels``."""
        check_pixels(pixels, self.image_size)
        states = self.model.pre_layrnorm(self.model.embeddings(pixels.flatten(0, 1)))
        states = self.model.encoder(inputs_embeds=states).last_hidden_state
        tokens = self.model.post_layernorm(states)
        return Features(tokens[:, 0 if self.config.keep_cls else 1 :].unflatten(0, pixels.shape[:2]))


def read_sizes(config: Clip.Config) -> dict[str, Any]:
    """Options of transformers' ``CLIPVisionConfig``.

    Raises:
        ConfigError: neither or both of ``path`` and ``config`` given.
        WeightsError: the folder has no config.json of a CLIP.
    """
    if (config.path is None) == (config.config is None):
        raise ConfigError("model.vision clip needs exactly one of path (a folder with config.json) and config (sizes)")
    sizes = config.config
    if sizes is None:
        sizes = read_vision_config(inner_folder(str(config.path), FOLDERS))
    if config.image_size is not None:
        sizes = sizes | {"image_size": config.image_size}
    return {k: v for k, v in sizes.items() if k not in ("model_type", "architectures", "transformers_version")}


def read_vision_config(folder: Path) -> dict[str, Any]:
    """The vision section of a folder's config.json, of a whole CLIP or of a vision tower.

    Raises WeightsError: no such file, or it describes another kind of model.
    """
    file = folder / "config.json"
    if not file.is_file():
        fix = "give a folder such as a download of openai/clip-vit-large-patch14"
        raise WeightsError(f"model.vision.path: no CLIP in {folder} (config.json is missing)", fix=fix)
    try:
        declared = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        text = mistaken(file) or f"{file}: not JSON ({error})"
        raise WeightsError(text, fix="download it again") from error
    declared = declared if isinstance(declared, dict) else {}
    sizes, kind = declared.get("vision_config", declared), declared.get("model_type")
    if not isinstance(sizes, dict) or "patch_size" not in sizes or "clip" not in str(kind):
        raise WeightsError(f"{file}: model_type {kind!r} is not a CLIP")
    return dict(sizes)
