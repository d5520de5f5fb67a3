"""Tries every causal language model of the installed transformers with small random weights.

For each family: saved by transformers, read here; equal logits, loss and gradients; the same greedy answer; the same
beams; packed rows and padded batches give the same loss. Prints one line per family.

    python tools/llm_families.py              # all
    python tools/llm_families.py bloom mixtral
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vlm.checkpoint.formats.hf_llm import HFFolder
from vlm.checkpoint.load import load_file
from vlm.common.errors import UserError
from vlm.inference.decoding import Prompt, StopCriteria, decode
from vlm.inference.generation import CHAT
from vlm.models.fusion.base import LLMInputs
from vlm.models.llm.hf import HFCausalLM

VOCAB = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    "encoder_attention_heads": 4,
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("ffn_hidden_size", "intermediate_dim", "shared_expert_intermediate_size", "dff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_intermediate_size"), 24),
    "head_dim": 8,
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "attention_window_size"), 5),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), 1),
    "eos_token_id": 2,
    "initializer_range": 0.2,
    **dict.fromkeys(("lru_width", "rotary_dim"), 32),
    "first_k_dense_replace": 1,
    "use_sliding_window": True,
}
"""Sizes by the names under which configurations know them."""
LAYERS = {"layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers", "block_types"}
MLA = ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3")
"""Families with latent attention: as many heads of keys as of queries."""
LINEAR = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "minimax")
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
MORE: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3], **MAMBA},
    "codegen": {"rotary_dim": 4},
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "falcon_h1": {"mamba_d_ssm": 64, **MAMBA, "mamba_n_groups": 1},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
    },
    "jamba": {"mamba_dt_rank": 4, "mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    **{kind: {"num_key_value_heads": 4} for kind in (*MLA, "youtu")},
    "falcon": {"head_dim": None},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    **{kind: {"layer_types": ["linear_attention", "full_attention"] * 2} for kind in LINEAR},
    "ministral": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8, "num_key_value_heads": 2},
    "hunyuan_v1_moe": {"head_dim": 8, "num_key_value_heads": 2},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "vocab_size_per_layer_input": 96,
    },
    "zaya": {"num_experts_per_tok": 1},
    "xlstm": {"v_head_dim": None},
    "xlnet": {"max_position_embeddings": None},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "llama4_text": {"intermediate_size_mlp": 48, "floor_scale": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "mpt": {"max_seq_len": 64},
    "opt": {"ffn_dim": 48},
    "phi3": {"pad_token_id": 0},
    "qwen3": {"tie_word_embeddings": True},
    "qwen2": {"max_window_layers": 2},
}


def small(kind: str) -> Any:
    """A configuration of this family with the sizes of ``SIZES``."""
    default = AutoConfig.for_model(kind)
    text = default.get_text_config()
    known = {k: v for k, v in SIZES.items() if hasattr(text, k) and k not in LAYERS and not isinstance(v, type)}
    known = {k: v for k, v in known.items() if getattr(text, k) is not None or k == "sliding_window"}
    known = {k: v for k, v in (known | MORE.get(kind, {})).items() if v is not None}
    try:
        return type(text)(**known)
    except Exception as error:  # noqa: BLE001
        raise NotBuilt(f"configuration: {error}") from error


class NotBuilt(Exception):
    """The family cannot be made small by the rules above."""


def reference(kind: str, folder: Path) -> Any:
    """The transformers model, saved to ``folder``."""
    torch.manual_seed(0)
    try:
        config = small(kind)
        with torch.device("meta"):
            count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if count > 10_000_000:
            raise NotBuilt(f"{count:,} parameters")
        model = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1 and not parameter.any():
                    parameter.normal_(std=0.1)
        model.generation_config = GenerationConfig()
        model.save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    except NotBuilt:
        raise
    except Exception as error:  # noqa: BLE001
        raise NotBuilt(f"{type(error).__name__}: {error}") from error


def ours(folder: Path, **options: Any) -> HFCausalLM:
    """The same folder, read here."""
    llm = HFCausalLM(HFCausalLM.Config(path=str(folder), dtype="fp32", **options)).float().eval()
    holder = torch.nn.Module()
    holder.llm = llm
    load_file(holder, HFFolder("llm"), folder)  # type: ignore[arg-type]
    return llm


def rows(lengths: list[list[int]], llm: HFCausalLM, ids: list[list[list[int]]]) -> LLMInputs:
    """Rows of samples as the fusion makes them."""
    size = max(sum(row) for row in lengths)
    embeds = torch.zeros(len(lengths), size, llm.hidden_size)
    segments, positions, labels = (torch.zeros(len(lengths), size, dtype=torch.long) for _ in range(3))
    labels -= 100
    for r, row in enumerate(lengths):
        at = 0
        for number, count in enumerate(row):
            here = slice(at, at + count)
            embeds[r, here] = llm.embed(torch.tensor(ids[r][number])).detach()
            segments[r, here], positions[r, here] = number + 1, torch.arange(count)
            labels[r, at + 2 : at + count] = torch.tensor(ids[r][number][2:])
            at += count
    return LLMInputs(embeds, segments, positions, labels, packed=any(len(row) > 1 for row in lengths))


def loss(llm: HFCausalLM, inputs: LLMInputs) -> torch.Tensor:
    """Summed loss."""
    keep = inputs.predicts()
    return llm.loss(llm(inputs, keep), inputs.targets(keep))


def checks(kind: str, folder: Path) -> Iterator[str]:
    """What differs."""
    theirs = reference(kind, folder)
    llm = ours(folder)
    yield f"[{'one row' if llm.packs else 'apart'}]"
    torch.manual_seed(1)
    ids = torch.randint(3, VOCAB, (1, 17))
    embeds = theirs.get_input_embeddings()(ids).detach()
    with torch.no_grad():
        wanted = theirs(input_ids=ids, use_cache=False).logits
        by_embeds = theirs(inputs_embeds=embeds, use_cache=False).logits
        one = LLMInputs(embeds, torch.ones_like(ids), torch.arange(17)[None], ids)
        hidden = llm(one)
        found = llm.head(hidden)
        changed = embeds.clone()
        changed[:, -1] += 1
        ahead = (llm(dataclasses.replace(one, inputs_embeds=changed)) - hidden)[:, :-1].abs().max().item()
        direct = llm.model(inputs_embeds=embeds, use_cache=False).logits
    if ahead > 1e-5:
        yield f"sees later tokens ({ahead:.2g})"
    for name, other in (("embeds", by_embeds), ("direct", direct), ("logits", found)):
        gap = (wanted - other).abs().max().item()
        if not gap < 1e-4:
            yield f"{name} differ by {gap:.2g}"
    yield from training(theirs, llm, one)
    yield from packing(llm)
    yield from generation(theirs, llm, ids, embeds)


def training(theirs: Any, llm: HFCausalLM, one: LLMInputs) -> Iterator[str]:
    """The loss of a sample, and the gradient of every parameter."""
    keep = one.predicts()
    logits = theirs(inputs_embeds=one.inputs_embeds, use_cache=False).logits
    wanted = torch.nn.functional.cross_entropy(logits[keep].float(), one.targets(keep), reduction="sum")
    found = loss(llm, one)
    if not abs(wanted.item() - found.item()) < 1e-3:
        yield f"loss {found.item():.4f}, wanted {wanted.item():.4f}"
    wanted.backward()
    found.backward()
    grads = dict(theirs.named_parameters())
    largest = max(p.grad.abs().max().item() for p in grads.values() if p.grad is not None)
    for name, own in llm.model.named_parameters():
        one_grad, other = (torch.zeros(()) if g is None else g for g in (own.grad, grads[name].grad))
        gap, size = (one_grad - other).abs().max().item(), other.abs().max().item()
        if not gap <= max(1e-4 * size, 1e-6 * largest):
            yield f"gradient of {name} differs by {gap / max(size, 1e-30):.2g} of its size"
            break
    theirs.zero_grad()
    llm.zero_grad()


def packing(llm: HFCausalLM) -> Iterator[str]:
    """Packed rows, padded batches, single samples; and a step."""
    lengths = [[13, 4, 9], [11, 12], [16]]
    generator = torch.Generator().manual_seed(2)
    ids = [[torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in row] for row in lengths]
    texts = [text for row in ids for text in row]
    singles = [loss(llm, rows([[len(text)]], llm, [[text]])).item() for text in texts]
    padded = loss(llm, rows([[len(text)] for text in texts], llm, [[text] for text in texts])).item()
    packed = loss(llm, rows(lengths, llm, ids))
    for name, value in (("padded", padded), ("packed", packed.item())):
        if not abs(value - sum(singles)) < 2e-3:
            yield f"{name} loss {value:.4f}, single {sum(singles):.4f}"
    packed.backward()
    if not all(p.grad is None or p.grad.isfinite().all() for p in llm.parameters()):
        yield "gradients not finite"


def generation(theirs: Any, llm: HFCausalLM, ids: torch.Tensor, embeds: torch.Tensor) -> Iterator[str]:
    """Greedy, padded and with beams."""
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    ends = StopCriteria(eos=(), bos=1, pad=1)
    greedy = CHAT.replace(do_sample=False, repetition_penalty=1.0, max_new_tokens=8)
    beams = greedy.replace(num_beams=3, length_penalty_form="answer")
    whole, answers = torch.ones_like(ids), {}
    for name, ours in (("greedy", greedy), ("beams", beams)):
        with torch.no_grad():
            more = {**options, "num_beams": ours.num_beams}
            wanted = theirs.generate(input_ids=ids, attention_mask=whole, **more)[0, 17:].tolist()
        answers[name] = found = decode(llm.model, Prompt(embeds, whole), ours, ends)[0]
        if found != wanted:
            yield f"{name} {found} {wanted}"
        plain = decode(llm.model, Prompt(embeds, whole), ours.replace(use_cache=False), ends)[0]
        if plain != found:
            yield f"{name} without cache {plain} {found}"
    short = torch.cat([torch.zeros(1, 6, embeds.shape[-1]), embeds[:, :11]], 1)
    mask = torch.cat([torch.zeros(1, 6), torch.ones(1, 11)], 1).long()
    alone = decode(llm.model, Prompt(embeds[:, :11], torch.ones(1, 11).long()), greedy, ends)[0]
    both = decode(llm.model, Prompt(torch.cat([embeds, short]), torch.cat([whole, mask])), greedy, ends)
    if both != [answers["greedy"], alone]:
        yield f"batch of two {both} {[answers['greedy'], alone]}"


def main(kinds: list[str]) -> None:
    """One line per family."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for kind in kinds or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        with tempfile.TemporaryDirectory() as folder:
            said = []
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    for text in checks(kind, Path(folder)):
                        said.append(text)
                state = "ok" if len(said) == 1 else "DIFFERS"
            except NotBuilt as error:
                state, said = "not built", [str(error)]
            except UserError as error:
                state, said = "refused", [*said, str(error)]
            except Exception as error:  # noqa: BLE001
                state, said = "FAILS", [*said, f"{type(error).__name__}: {error}"]
            sys.stdout.write(f"{kind:24} {state:9} {'; '.join(said)[:330]}".replace("\n", " ") + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
