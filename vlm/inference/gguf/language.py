"""The language model of a GGUF file: sizes and tensors by llama.cpp's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlm.common.errors import WeightsError
from vlm.inference.hub.contents import Contents

FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""``model_type`` of transformers -> llama.cpp's architecture."""
ROTATED = ("llama", "mistral")
"""Families whose rotary halves llama.cpp expects interleaved."""


def check_family(contents: Contents) -> str:
    """llama.cpp's architecture of the LLM.

    Raises WeightsError: a family, a kind of rotary positions or an attention that is not written here.
    """
    config = contents.llm_config
    convert = "write --to hf, and convert its language model with llama.cpp's convert_hf_to_gguf.py"
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise WeightsError(f"the LLM is a {config.model_type}; GGUF is written of {known}", fix=convert)
    kind = config.rope_parameters["rope_type"]
    if kind != "default":
        raise WeightsError(f"the LLM has rotary positions of type {kind}; GGUF is written without scaling", fix=convert)
    return FAMILIES[config.model_type]


def add_sizes(writer: Any, contents: Contents) -> None:
    """Sizes, norms and rotary positions."""
    config = contents.llm_config
    head = config.hidden_size // config.num_attention_heads
    head = config.to_dict().get("head_dim") or head
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(contents.model.llm.vocab_size)


def plan(contents: Contents, architecture: str) -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    """Name in the file -> our name, and what turns our tensor into the file's.

    Raises WeightsError: a tensor that llama.cpp has no name for.
    """
    import gguf

    config = contents.llm_config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = {f"llm.model.{name}" for name in contents.model.llm.model.all_tied_weights_keys or ()}
    result: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {}
    for name in contents.weights.facts:
        own = name.removeprefix("llm.model.")
        if own == name or name in tied:
            continue
        theirs = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise WeightsError(f"llama.cpp's {architecture} has no tensor for {own}")
        heads = rotated_heads(config, own)
        result[theirs] = name, unchanged if heads is None else interleaved(heads)
    return result


def rotated_heads(config: Any, name: str) -> int | None:
    """Heads of a projection whose rotary halves are to be interleaved, or None."""
    if config.model_type not in ROTATED:
        return None
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else None


def unchanged(tensor: Tensor) -> Tensor:
    """The tensor."""
    return tensor


def interleaved(heads: int) -> Callable[[Tensor], Tensor]:
    """Rows ``[heads * d, ...]`` of each head from (first half, second half) to pairs."""

    def turn(tensor: Tensor) -> Tensor:
        halves = tensor.unflatten(0, (heads, 2, -1))
        return halves.transpose(1, 2).reshape(tensor.shape)

    return turn


def stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as it is written: matrices in ``dtype``, vectors in float32."""
    return tensor.to(dtype if tensor.dim() > 1 else torch.float32)
