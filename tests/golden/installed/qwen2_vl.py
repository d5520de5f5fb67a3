"""Qwen2-VL in small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden.installed.folders import Case, save, tokenizer

CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A chat template in the manner of Qwen2-VL's."""
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def build(folder: Path, tied: bool = False) -> None:
    """Patches of 4 px, merged 2 x 2, at most 24 tokens of an image -> Qwen2 with positions of three axes."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    words = tokenizer(SPECIAL, CHAT)
    size = {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 24}
    images = Qwen2VLImageProcessorPil(size=size, patch_size=4, merge_size=2)
    processor = Qwen2VLProcessor(images, words, Qwen2VLVideoProcessor(), chat_template=CHAT)
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(words) + 3,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            "eos_token_id": words.convert_tokens_to_ids("<|im_end|>"),
        },
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4},
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    save(Qwen2VLForConditionalGeneration(config), processor, folder)


def build_tied(folder: Path) -> None:
    """With a head tied to the embeddings."""
    build(folder, tied=True)


def features(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens before they are merged, row by row."""
    grids = inputs["image_grid_thw"]
    states = model.model.visual(inputs["pixel_values"], grid_thw=grids).last_hidden_state
    rows = []
    for own, (_, height, width) in zip(states.split(grids.prod(1).tolist()), grids.tolist(), strict=True):
        rows.append(own.view(height // 2, width // 2, 2, 2, -1).transpose(1, 2).reshape(height * width, -1))
    return torch.cat(rows)


def bridged(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Merged tokens."""
    return torch.cat(list(model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output))


CASES = (Case("qwen2_vl", build, features, bridged), Case("qwen2_vl_tied", build_tied, features, bridged))
