"""LLaVA-1.5 in small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden.installed.folders import Case, save, tokenizer


def build(folder: Path) -> None:
    """CLIP 28 px with patches of 14, layer -2 -> MLP -> LLaMA."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    vision = CLIPVisionConfig(**small | {"num_hidden_layers": 3}, image_size=42, patch_size=14)
    text = LlamaConfig(**small, vocab_size=len(words) + 3, max_position_embeddings=512, eos_token_id=words.eos_token_id)
    image = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image)
    sides = {"height": 42, "width": 42}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size=sides),
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )
    save(LlavaForConditionalGeneration(config), processor, folder)


def features(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens of the chosen layer, without the class token unless the model keeps it."""
    config = model.config
    states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    tokens = states[config.vision_feature_layer]
    return tokens[:, 1 if config.vision_feature_select_strategy == "default" else 0 :].flatten(0, 1)


def bridged(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens after the projector."""
    return torch.cat(list(model.get_image_features(inputs["pixel_values"]).pooler_output))


CASES = (Case("llava", build, features, bridged),)
