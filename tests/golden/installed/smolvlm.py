"""Idefics3 and SmolVLM in small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden.installed.folders import Case, save, tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
SPECIAL = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
CHAT = (
    "<s>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}{{ ': ' + message['content'] }}{% else %}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""A chat template in the manner of SmolVLM's: no space between role and image."""


def build(folder: Path, longest: int = 84, split: bool = True) -> None:
    """A vision encoder of 28 px with patches of 7, tiles, pixel shuffle by 2 -> linear -> LLaMA."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    words = tokenizer((*SPECIAL, *TILES), CHAT)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": longest}, max_image_size={"longest_edge": 28}, do_image_splitting=split
    )
    processor = Idefics3Processor(images, words, image_seq_len=4, chat_template=CHAT)
    config = Idefics3Config(**sizes(words), tie_word_embeddings=False)
    save(Idefics3ForConditionalGeneration(config), processor, folder)


def build_smolvlm(folder: Path) -> None:
    """SmolVLM with a tied head, whose processor has one for videos besides."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessorPil,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    words = tokenizer((*SPECIAL, "<video>", *TILES), CHAT)
    images = SmolVLMImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = SmolVLMProcessor(images, words, SmolVLMVideoProcessor(), image_seq_len=4, chat_template=CHAT)
    config = SmolVLMConfig(**sizes(words), tie_word_embeddings=True)
    save(SmolVLMForConditionalGeneration(config), processor, folder)


def sizes(words: Any) -> dict[str, Any]:
    """Options of the configuration of either."""
    ends = words.convert_tokens_to_ids("<end_of_utterance>")
    return {
        "vision_config": {**SMALL, "image_size": 28, "patch_size": 7},
        "text_config": {
            "model_type": "llama",
            **SMALL,
            "vocab_size": len(words) + 3,
            "max_position_embeddings": 2048,
            "eos_token_id": ends,
        },
        "scale_factor": 2,
        "image_token_id": words.convert_tokens_to_ids("<image>"),
    }


def build_whole(folder: Path) -> None:
    """Images shown as one tile."""
    build(folder, split=False)


def features(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens of all tiles."""
    pixels = inputs["pixel_values"].flatten(0, 1)
    return model.model.vision_model(pixel_values=pixels).last_hidden_state.flatten(0, 1)


def bridged(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens after the projection."""
    return torch.cat(list(model.get_image_features(inputs["pixel_values"]).pooler_output))


CASES = (
    Case("idefics3", build, features, bridged),
    Case("idefics3_whole", build_whole, features, bridged),
    Case("smolvlm", build_smolvlm, features, bridged),
)
