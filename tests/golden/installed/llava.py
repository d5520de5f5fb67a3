"""LLaVA-1.5 and LLaVA-NeXT in small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden.installed.folders import Case, save, tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}


def build(
    folder: Path,
    text: Any = None,
    vision: Any = None,
    words: Any = None,
    vocab: int = 0,
    prefix: int = 1,
    **options: Any,
) -> None:
    """CLIP 42 px with patches of 14, layer -2 -> MLP -> LLaMA; or other configurations, ``prefix`` tokens first."""
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    words = words or tokenizer(begins=True)
    vision, text = vision or clip(), llm(text, words, vocab)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>"), **options
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}),
        words,
        patch_size=14,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=prefix,
        chat_template=words.chat_template,
    )
    save(LlavaForConditionalGeneration(config), processor, folder)


def clip() -> Any:
    """CLIP with nine patches."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**SMALL | {"num_hidden_layers": 3}, image_size=42, patch_size=14)


def llm(text: Any, words: Any, vocab: int = 0) -> Any:
    """LLaMA, or the configuration ``text``, with the sizes of a tokenizer; some rows have no token."""
    from transformers import LlamaConfig

    text = text or LlamaConfig(**SMALL)
    sizes = {"vocab_size": max(vocab, len(words) + 3), "max_position_embeddings": 1024}
    text.update(sizes | {"eos_token_id": words.eos_token_id})
    return text


def build_tied(folder: Path) -> None:
    """Qwen2 with a head tied to the embeddings; all tokens of the last layer; a bridge without bias."""
    from transformers import Qwen2Config

    text = Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)
    more = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, "multimodal_projector_bias": False}
    build(folder, text, words=tokenizer(), **more, projector_hidden_act="gelu_pytorch_tanh")


def build_experts(folder: Path) -> None:
    """A mixture of experts, whose published files hold each on its own; the encoder's first layer; no chat template."""
    from transformers import Qwen2MoeConfig

    text = Qwen2MoeConfig(
        **SMALL, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    )
    text.shared_expert_intermediate_size = 16
    build(folder, text, words=tokenizer(chat=None, begins=True), vision_feature_layer=1)


def build_siglip(folder: Path) -> None:
    """SigLIP, all tokens of the last layer before its norm; images of another shape."""
    from transformers import SiglipVisionConfig

    vision = SiglipVisionConfig(**SMALL, image_size=42, patch_size=14)
    build(folder, vision=vision, prefix=0, vision_feature_layer=-1, vision_feature_select_strategy="full")


def build_dino(folder: Path) -> None:
    """DINOv2 with registers, without its class token."""
    from transformers import Dinov2WithRegistersConfig

    sizes = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
    vision = Dinov2WithRegistersConfig(**sizes, mlp_ratio=2, image_size=42, patch_size=14, num_register_tokens=2)
    build(folder, vision=vision, prefix=3)


def build_layers(folder: Path) -> None:
    """Two layers of CLIP side by side."""
    build(folder, vision_feature_layer=[-1, 2])


def build_next(folder: Path) -> None:
    """LLaVA-NeXT with tiles of 42 px."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
    )

    words, areas = tokenizer(), [[42, 84], [84, 42], [84, 84], [126, 42], [42, 126]]
    config = LlavaNextConfig(
        vision_config=clip(),
        text_config=llm(None, words),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=areas,
    )
    sides = {"height": 42, "width": 42}
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(size={"shortest_edge": 42}, crop_size=sides, image_grid_pinpoints=areas),
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )
    save(LlavaNextForConditionalGeneration(config), processor, folder)


def features(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens of the chosen layers, without the class token unless the model keeps it."""
    config, pixels = model.config, inputs["pixel_values"]
    states = model.model.vision_tower(pixels.flatten(0, -4), output_hidden_states=True).hidden_states
    layers = config.vision_feature_layer
    tokens = torch.cat([states[k] for k in ([layers] if isinstance(layers, int) else layers)], dim=-1)
    return tokens[:, 1 if config.vision_feature_select_strategy == "default" else 0 :].flatten(0, 1)


def bridged(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens after the projector, in the order of the sequence."""
    given = {name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}
    return torch.cat(list(model.get_image_features(**given).pooler_output))


CASES = (
    Case("llava", build, features, bridged),
    Case("llava_tied", build_tied, features, bridged),
    Case("llava_experts", build_experts, features, bridged),
    Case("llava_siglip", build_siglip, features, bridged),
    Case("llava_dino", build_dino, features, bridged),
    Case("llava_layers", build_layers, features, bridged),
    Case("llava_next", build_next, features, bridged),
)
