"""Small GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False}),
    "gemma2": ("gemma2", {"sliding_window": 8}),
    "qwen3_moe": (
        "qwen3moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
}
"""Family of transformers -> llama.cpp's name of it and further sizes."""
LETTERS = [chr(c) for c in range(97, 123)]
TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", *LETTERS, "Ġ", "Ċ", "th", "the", "in", "an"]
MERGES = ["t h", "th e", "i n", "a n"]
CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def model_of(family: str, **more: Any) -> Any:
    """A random model of transformers."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=len(TOKENS), **SIZES | FAMILIES[family][1] | more)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write(path: Path, model: Any, quantisation: str = "F32") -> None:
    """The file; matrices are quantised, vectors are not."""
    import gguf
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    config = model.config
    name = FAMILIES[config.model_type][0]
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "llama3":
        plain = 1.0 / config.rope_parameters["rope_theta"] ** (np.arange(0, 16, 2) / 16)
        scaled = model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    if name != "llama":
        writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 16)
        writer.add_value_length(config.head_dim if hasattr(config, "head_dim") else 16)
    if name == "gemma2":
        writer.add_sliding_window(config.sliding_window)
    if name == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([2, 3, 3, 3, 3] + [1] * (len(TOKENS) - 5))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT)
    processor = TENSOR_PROCESSORS.get(name, TensorProcessor)(config=config.to_dict())
    places = get_gguf_hf_weights_map(model, processor)
    state = model.state_dict()
    for ours, theirs in places.items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = _converted(ours, state[theirs].numpy(), config)
        kind = gguf.GGMLQuantizationType[quantisation if value.ndim > 1 else "F32"]
        stored = gguf.quants.quantize(value, kind)
        full = ours if ours.endswith((".weight", ".bias")) else f"{ours}.weight"
        writer.add_tensor(full, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _converted(name: str, value: np.ndarray, config: Any) -> np.ndarray:
    if config.model_type == "gemma2" and "norm" in name:
        return value + 1
    if config.model_type == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    if "ffn_gate_exps" in name:
        return value[:, : value.shape[1] // 2]
    if "ffn_up_exps" in name:
        return value[:, value.shape[1] // 2 :]
    return value
