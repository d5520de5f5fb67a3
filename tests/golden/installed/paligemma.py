"""PaliGemma and PaliGemma 2 in small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.golden.installed.folders import Case, save, tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
TEXT = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0}


def build(folder: Path, **text: Any) -> None:
    """SigLIP 42 px with patches of 14 -> linear -> Gemma, or another ``text`` configuration."""
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessorPil,
    )

    words = tokenizer(chat=None)
    images = SiglipImageProcessorPil(size={"height": 42, "width": 42}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    images.image_seq_length = 9
    processor = PaliGemmaProcessor(images, words)
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **SMALL,
            "image_size": 42,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={"model_type": "gemma", **TEXT, **ids, "vocab_size": len(words) + 3, **text},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        **ids,
    )
    save(PaliGemmaForConditionalGeneration(config), processor, folder)


def build_second(folder: Path) -> None:
    """Gemma 2: capped scores, windows shorter than the prefix; earlier versions leave out the cap of logits."""
    caps = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": None}
    build(folder, model_type="gemma2", sliding_window=12, query_pre_attn_scalar=8, **caps)


def features(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens of the vision encoder."""
    return model.model.vision_tower(inputs["pixel_values"]).last_hidden_state.flatten(0, 1)


def bridged(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens after the projection."""
    return model.get_image_features(inputs["pixel_values"]).pooler_output.flatten(0, 1)


CASES = (Case("paligemma", build, features, bridged), Case("paligemma2", build_second, features, bridged))
