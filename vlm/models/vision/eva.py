"""EVA-ViT as used by BLIP-2 (EVA-CLIP, arXiv:2211.07636; patch 14, no final norm)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from vlm.common.bounds import Count, Depth, Dropout, Positive
from vlm.common.errors import ConfigError
from vlm.common.registry import register_vision
from vlm.common.types import Features
from vlm.models.lora import LoraOptions, inject_lora
from vlm.models.vision.base import Float32LayerNorm, check_patches, check_pixels


@register_vision("eva_vit")
class EvaViT(nn.Module):
    """Pre-norm ViT with learned absolute positions and a zero key bias; returns all tokens of its last block.

    State-dict keys: ``vit.*`` (the published names) and ``ln_vision.{weight,bias}``.
    """

    @dataclass
    class Config:
        """Options of ``vision: {name: eva_vit}``; the defaults are EVA-ViT-g at 224 pixels.

        Example: ``vision: {name: eva_vit, image_size: 448, precision: bf16}``
        """

        image_size: Count = 224
        patch_size: Count = 14
        embed_dim: Count = 1408
        depth: Depth = 39
        num_heads: Count = 16
        mlp_ratio: Positive = 4.3637
        drop_path_rate: Dropout = 0.0
        ln_vision: bool = True
        norm_eps: Positive = 1e-6  # of the norms in the blocks
        ln_vision_eps: Positive = 1e-5  # of the norm after them; transformers' BLIP-2 uses 1e-6
        qkv_bias: bool = True
        attention_dropout: Dropout = 0.0
        precision: Literal["fp16", "bf16", "fp32"] = "fp16"
        checkpointing: bool = False
        lora: LoraOptions | None = None

        def __post_init__(self) -> None:
            """Raises ConfigError for an image that does not divide into patches, or a width into heads."""
            if self.embed_dim % self.num_heads:
                raise ConfigError(f"embed_dim is {self.embed_dim}, expected a multiple of num_heads, {self.num_heads}")
            check_patches(self.image_size, self.patch_size)

    def __init__(self, config: Config) -> None:
        super().__init__()
        from timm.layers import LayerNorm
        from timm.models.eva import Eva

        self.config = config
        same = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "drop_path_rate")
        self.vit = Eva(
            img_size=config.image_size,
            **{name: getattr(config, name) for name in same},
            num_classes=0,
            global_pool="",
            qkv_bias=config.qkv_bias,
            qkv_fused=True,
            attn_drop_rate=config.attention_dropout,
            norm_layer=partial(LayerNorm, eps=config.norm_eps),
            use_post_transformer_norm=False,
            use_fc_norm=False,
        )
        self.vit.set_grad_checkpointing(config.checkpointing)
        if config.lora is not None:
            inject_lora(self.vit, config.lora)
        norm = Float32LayerNorm(config.embed_dim, eps=config.ln_vision_eps)
        self.ln_vision = norm if config.ln_vision else nn.Identity()
        self.out_dim = config.embed_dim
        self.image_size = config.image_size
        self.num_tokens = 1 + (config.image_size // config.patch_size) ** 2

    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, for LoRA, checkpointing and tests."""
        return self.vit.blocks

    def forward(self, pixels: Tensor) -> Features:
        """``[n, f, 3, h, w]`` -> ``[n, f, 1 + (h / patch)^2, embed_dim]``, class token first.

        Raises:
            ConfigError: pixels of another size.
        """
        check_pixels(pixels, self.image_size)
        tokens = self.ln_vision(self.vit.forward_features(pixels.flatten(0, 1)))
        return Features(tokens.unflatten(0, pixels.shape[:2]))
