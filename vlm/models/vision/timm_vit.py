"""Vision transformers of timm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from vlm.common.bounds import Count
from vlm.common.errors import ConfigError
from vlm.common.registry import register_vision
from vlm.common.types import Features
from vlm.models.lora import LoraOptions, inject_lora
from vlm.models.vision.base import check_patches, check_pixels

FILES = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
"""Options of ``timm.create_model`` with which it downloads or unpickles weights itself."""


@register_vision("timm")
class TimmVision(nn.Module):
    """A timm model whose ``forward_features`` returns tokens ``[n, v, d]``. State-dict keys: ``model.*``."""

    @dataclass
    class Config:
        """Options of ``vision: {name: timm}``; ``options`` goes to ``timm.create_model``.

        ``image_size`` null means the model's own; ``keep_prefix`` keeps class and register tokens.

        Example: ``vision: {name: timm, model: vit_small_patch16_224, image_size: 336}``
        """

        model: str = "vit_base_patch16_224"
        image_size: Count | None = None
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
            if not timm.is_model(self.model):
                near = ", ".join(timm.list_models(f"*{self.model.split('.')[0].split('_')[0]}*")[:5])
                raise ConfigError(f"model: timm has no {self.model!r}" + (f" (some it has: {near})" if near else ""))

    model: Any

    def __init__(self, config: Config) -> None:
        super().__init__()
        import timm

        self.config = config
        size: dict[str, Any] = {} if config.image_size is None else {"img_size": config.image_size}
        model: Any = timm.create_model(config.model, pretrained=False, num_classes=0, **size, **config.options)
        patch_embed: Any = getattr(model, "patch_embed", None)
        if patch_embed is None or not hasattr(patch_embed, "img_size"):
            raise ConfigError(f"model.vision.model: {config.model!r} is not a transformer over patches")
        check_patches(patch_embed.img_size[0], patch_embed.patch_size[0])
        if config.checkpointing:
            model.set_grad_checkpointing(True)
        if config.lora is not None:
            inject_lora(model, config.lora)
        self.model = model
        self.prefix = 0 if config.keep_prefix else model.num_prefix_tokens
        self.out_dim = model.num_features
        self.image_size = patch_embed.img_size[0]
        self.num_tokens = patch_embed.num_patches + model.num_prefix_tokens - self.prefix

    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, for LoRA, checkpointing and tests."""
        return self.model.blocks

    def forward(self, pixels: Tensor) -> Features:
        """``[n, f, 3, h, w]`` -> tokens ``[n, f, num_tokens, out_dim]``, every frame on its own.

        Raises ConfigError: pixels of another size.
        """
        check_pixels(pixels, self.image_size)
        tokens = self.model.forward_features(pixels.flatten(0, 1))[:, self.prefix :]
        return Features(tokens.unflatten(0, pixels.shape[:2]))
