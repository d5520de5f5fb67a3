"""BLIP-2 and InstructBLIP in small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.golden.installed.folders import Case, save, tokenizer

VISION = {"hidden_size": 32, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 42, "patch_size": 14}
QFORMER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
QUERIES = 5
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz?.,",
    "what",
    "is",
    "in",
    "the",
    "image",
]


def words() -> Any:
    """The LLM's tokenizer: no chat template, and ``<s>`` before every text, as that of OPT and LLaMA."""
    from tokenizers.processors import TemplateProcessing

    made = tokenizer(chat=None)
    begin = ("<s>", made.convert_tokens_to_ids("<s>"))
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[begin])
    return made


def image_processor() -> Any:
    """A square of 42 pixels through PIL."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return BlipImageProcessorPil(size={"height": 42, "width": 42})


def build(folder: Path) -> None:
    """EVA -> Q-Former -> linear -> OPT."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, OPTConfig

    tokens = words()
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = OPTConfig(
        **sizes,
        word_embed_proj_dim=32,
        vocab_size=len(tokens) + 3,
        max_position_embeddings=256,
        eos_token_id=tokens.eos_token_id,
        bos_token_id=tokens.bos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
    )
    processor = Blip2Processor(image_processor(), tokens, num_query_tokens=QUERIES)
    save(Blip2ForConditionalGeneration(config), processor, folder)


def build_instruct(folder: Path) -> None:
    """EVA -> Q-Former that reads the question -> linear -> LLaMA."""
    from transformers import (
        BertTokenizer,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        LlamaConfig,
    )

    tokens = words()
    pieces = BertTokenizer({word: i for i, word in enumerate([*WORDS, *(f"##{c}" for c in WORDS[5:31])])})
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = LlamaConfig(
        **sizes, vocab_size=len(tokens) + 3, max_position_embeddings=512, eos_token_id=tokens.eos_token_id
    )
    config = InstructBlipConfig(
        vision_config=VISION,
        qformer_config=QFORMER | {"vocab_size": len(pieces) + 1, "max_position_embeddings": 64},
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
    )
    processor = InstructBlipProcessor(image_processor(), tokens, pieces, num_query_tokens=QUERIES)
    save(InstructBlipForConditionalGeneration(config), processor, folder)


def features(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens after the norm, class token first."""
    return model.vision_model(inputs["pixel_values"]).last_hidden_state.flatten(0, 1)


def bridged(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Tokens after the projection."""
    read = {name: value for name, value in inputs.items() if name.startswith(("pixel", "qformer"))}
    return model.get_image_features(**read).pooler_output.flatten(0, 1)


LAST = [
    f"bridge.0.qformer.encoder.layer.{QFORMER['num_hidden_layers'] - 1}.{part}" for part in ("intermediate", "output")
]
UNREAD = frozenset(
    f"{layer}.{name}.{kind}"
    for layer in LAST
    for name in (("dense",) if layer.endswith("intermediate") else ("dense", "LayerNorm"))
    for kind in ("weight", "bias")
)
"""The question's part of the last layer: only the queries leave."""

CASES = (
    Case("blip2", build, features, bridged),
    Case("instructblip", build_instruct, features, bridged, UNREAD),
)
