"""LLaVA-1.5 in small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden.installed.folders import Case, save, tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}


def build(folder: Path, text: Any = None, vocab: int = 0, words: Any = None, **options: Any) -> None:
    """CLIP 42 px with patches of 14, layer -2 -> MLP -> LLaMA, or another ``text`` configuration."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = words or tokenizer(begins=True)
    vision = CLIPVisionConfig(**SMALL | {"num_hidden_layers": 3}, image_size=42, patch_size=14)
    text = text or LlamaConfig(**SMALL)
    text.update(
        {"vocab_size": max(vocab, len(words) + 3), "max_position_embeddings": 512, "eos_token_id": words.eos_token_id}
    )
    image = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, **options)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}),
        words,
        patch_size=14,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )
    save(LlavaForConditionalGeneration(config), processor, folder)


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


def features(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens of the chosen layer, without the class token unless the model keeps it."""
    config = model.config
    states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    tokens = states[config.vision_feature_layer]
    return tokens[:, 1 if config.vision_feature_select_strategy == "default" else 0 :].flatten(0, 1)


def bridged(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens after the projector."""
    return torch.cat(list(model.get_image_features(inputs["pixel_values"]).pooler_output))


CASES = (
    Case("llava", build, features, bridged),
    Case("llava_tied", build_tied, features, bridged),
    Case("llava_experts", build_experts, features, bridged),
)
