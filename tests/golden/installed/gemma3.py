"""Gemma 3 in small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.golden.installed.folders import Case, save, tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""A chat template in the manner of Gemma's."""
SPECIAL = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


def build(folder: Path) -> None:
    """SigLIP 56 px with patches of 14, pooled to 2 x 2 -> norm and matrix -> Gemma 3 with windows in one layer."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
        PreTrainedTokenizerFast,
    )

    plain = tokenizer((*SPECIAL.values(), "<start_of_turn>", "<end_of_turn>"), chat=None)
    names = {name: getattr(plain, name) for name in ("bos_token", "eos_token", "pad_token")}
    words = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, **names, extra_special_tokens=SPECIAL, chat_template=CHAT
    )
    end = words.convert_tokens_to_ids("<end_of_turn>")
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56}, do_pan_and_scan=False)
    processor = Gemma3Processor(images, words, chat_template=CHAT, image_seq_length=4)
    ids = {name: words.convert_tokens_to_ids(token) for name, token in SPECIAL.items()}
    config = Gemma3Config(
        vision_config={**SMALL, "hidden_size": 24, "image_size": 56, "patch_size": 14, "vision_use_head": False},
        text_config={
            **SMALL,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": len(words) + 3,
            "max_position_embeddings": 512,
            "query_pre_attn_scalar": 8,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"],
            "pad_token_id": words.pad_token_id,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": end,
        },
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
        eos_token_id=end,
    )
    save(Gemma3ForConditionalGeneration(config), processor, folder)


def features(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens of the vision encoder."""
    return model.model.vision_tower(inputs["pixel_values"]).last_hidden_state.flatten(0, 1)


def bridged(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens after the projection."""
    return model.get_image_features(inputs["pixel_values"]).pooler_output.flatten(0, 1)


CASES = (Case("gemma3", build, features, bridged),)
