"""Stage ``llm``: a small LLaMA that reads notes and answers about them."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM

from foundations import common
from foundations.common import SIZES, Clock, Plan, learning_rate, update
from foundations.text import TextWorld, exam, pad_rows
from foundations.tokenizer import Words
from vlm.datasets.synthetic.export import balanced_questions
from vlm.datasets.synthetic.language import NOTE_WORDS

STEPS, BATCH, PEAK = 3_000, 16, 2e-3


def build_llm() -> LlamaForCausalLM:
    """An untrained language model of the size in ``SIZES``.

    Input and output embeddings are one matrix while it trains, which makes copying words easy to learn; the
    exported files hold it twice, as LLaMA's do.
    """
    size = SIZES["llm"]
    config = LlamaConfig(
        vocab_size=size["vocab_size"], hidden_size=size["hidden_size"], intermediate_size=size["intermediate_size"],
        num_hidden_layers=size["num_hidden_layers"], num_attention_heads=size["num_attention_heads"],
        max_position_embeddings=512, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": size["rope_theta"]},
        bos_token_id=1, eos_token_id=2, pad_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    start_attention(model)
    return model


@torch.no_grad()
def start_attention(model: LlamaForCausalLM) -> None:
    """Start with attention that can look back and can match words, and with blocks that are the identity.

    All embeddings share one direction. In the first block it makes head h look h + 1 words back; in the others
    query and key maps are equal (and blind to that direction), so that a word attends to where it was read
    before. Found by gradient alone, these two took most of the training.
    """
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    half = width // heads // 2
    shared = torch.full((width,), width**-0.5)
    table = model.get_input_embeddings().weight
    table.normal_(std=0.08)
    table += 0.08 * width**0.5 * shared
    turns = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        attention.v_proj.weight.normal_(std=0.06)
        attention.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        if number:
            maps = torch.randn(width, width) * width**-0.5
            maps -= torch.outer(maps @ shared, shared)
            attention.q_proj.weight.copy_(maps)
            attention.k_proj.weight.copy_(maps)
            continue
        for linear in (attention.q_proj, attention.k_proj):
            linear.weight.normal_(std=0.005)
        for head in range(heads):
            angle = -(head + 1) * turns[: half // 3]
            first = torch.arange(half // 3) + 2 * half * head
            attention.q_proj.weight[first] += 0.6 * torch.outer(angle.cos(), shared)
            attention.q_proj.weight[first + half] += 0.6 * torch.outer(angle.sin(), shared)
            attention.k_proj.weight[first] += 0.6 * shared


def embed(model: LlamaForCausalLM, batch: dict[str, torch.Tensor], noise: float) -> torch.Tensor:
    """Token embeddings ``[b, s, d]``; image blocks get noise, those marked ``noise`` are nothing but noise."""
    table = model.get_input_embeddings()
    x = table(batch["ids"])
    if noise == 0:
        return x
    rows = torch.nonzero(batch["image"] >= 0).flatten()
    where = batch["image"][rows, None] + torch.arange(NOTE_WORDS)
    scale = table.weight.detach().pow(2).mean().sqrt()
    n, d = len(rows), x.shape[-1]
    level = torch.rand(n, 1, 1) * noise * scale
    add = torch.randn(n, NOTE_WORDS, d) * level
    loud = scale * torch.exp(torch.empty(n, 1, 1).uniform_(-1.0, 2.5))
    junk = loud * (torch.randn(n, NOTE_WORDS, d) * torch.rand(n, 1, 1) + torch.randn(n, 1, d) * torch.rand(n, 1, 1))
    old = x[rows[:, None], where]
    new = torch.where(batch["noise"][rows, None, None], junk, old + add)
    return x.index_put((rows[:, None].expand_as(where), where), new)


def answer_logits(model: LlamaForCausalLM, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[n, vocab]`` and targets ``[n]`` at the trained positions only."""
    hidden = model.model(inputs_embeds=x, use_cache=False).last_hidden_state
    rows, columns = torch.nonzero(labels[:, 1:] >= 0, as_tuple=True)
    return model.lm_head(hidden[rows, columns]), labels[rows, columns + 1]


@torch.no_grad()
def reading(model: LlamaForCausalLM, words: Words, count: int, seed: int, **kinds: object) -> dict[str, float]:
    """Exact match per question type when the note is read: all answer tokens are the most likely ones."""
    model.eval()
    world = TextWorld(words, seed)
    scenes = balanced_questions(count, seed, **kinds)
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(scenes), 100):
        part = scenes[start : start + 100]
        data = {k: torch.from_numpy(v) for k, v in pad_rows(exam(words, world, part)).items()}
        hidden = model.model(inputs_embeds=embed(model, data, 0.0), use_cache=False).last_hidden_state
        best = model.lm_head(hidden[:, :-1]).argmax(-1)
        target = data["labels"][:, 1:]
        for (_, question), ok in zip(part, ((best == target) | (target < 0)).all(1).tolist(), strict=True):
            right[question.type].append(ok)
    model.train()
    table = {kind: float(np.mean(values)) for kind, values in right.items()}
    return {"all": float(np.mean(list(table.values()))), **table}


def examine(model: LlamaForCausalLM, words: Words, count: int, seed: int = 10_000) -> dict[str, dict[str, float]]:
    """Reading accuracy on seen pairs, unseen pairs and three things."""
    return {
        "seen": reading(model, words, count, seed),
        "unseen": reading(model, words, count, seed, split="unseen"),
        "three": reading(model, words, count, seed, objects=(3,)),
    }


def show(name: str, table: dict[str, float]) -> str:
    """One line of percentages."""
    return f"{name:7s}" + " ".join(f"{kind} {100 * value:5.1f}" for kind, value in table.items())


def export_llm(model: LlamaForCausalLM, out: Path) -> None:
    """Write ``llm/`` as a Hugging Face folder with half weights (the tokenizer is already there)."""
    folder = out / "llm"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    part = folder / "model.safetensors.part"
    save_file(weights, part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.replace(folder / "model.safetensors")
    config = json.loads(model.config.to_json_string())
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float16",
        "tie_word_embeddings": False,
        "rope_theta": SIZES["llm"]["rope_theta"],
    }
    config.pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False, "max_new_tokens": 64}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def train_llm(plan: Plan, peak: float = PEAK, log_every: int = 250) -> None:
    """Train on rows of ``TextWorld``, going on from ``work/llm.pt`` if it is there, and export."""
    torch.manual_seed(plan.seed)
    words = Words(plan.out / "llm" / "tokenizer.model")
    model, total = build_llm(), plan.steps(STEPS, 8)
    optimizer = common.Muon(model)
    done, used = common.load_training(plan.work / "llm.pt", model, optimizer)
    clock, world = Clock(used), TextWorld(words, plan.seed + 1000 * done)
    batches = world.batches(BATCH)
    losses: list[float] = []
    for step in range(done, total):
        world.drill = 0.5 if step < 0.4 * total else 0.15
        data = {k: torch.from_numpy(v) for k, v in next(batches).items()}
        logits, target = answer_logits(model, embed(model, data, 0.6), data["labels"])
        loss = F.cross_entropy(logits, target)
        update(optimizer, loss, learning_rate(step, total, peak, 300))
        losses.append(loss.item())
        if (step + 1) % log_every == 0 or step + 1 == total:
            count = 240 if step + 1 < total and not plan.miniature else (80 if plan.miniature else 1600)
            tables = examine(model, words, count)
            print(f"llm step {step + 1}/{total} loss {np.mean(losses[-200:]):.4f} cpu {clock():.0f}s")
            print("\n".join(show(name, table) for name, table in tables.items()), flush=True)
            common.note_result(plan.work, "llm", step=step + 1, cpu_seconds=round(clock()), reading=tables)
            common.save_training(plan.work / "llm.pt", model, optimizer, step + 1, clock())
    export_llm(model, plan.out)
    common.write_sizes(plan.out)
