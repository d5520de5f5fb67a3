"""LoRA on a 4-bit LLM against LoRA on the same LLM in bfloat16.

    python -m benchmarks.qlora                  # a LLaMA of 32 M parameters, 200 steps: a few minutes on 2 cores
    python -m benchmarks.qlora --size small     # seconds; its numbers mean nothing

A LLaMA is trained first on the captions of the painted world. Then the composition of the quickstart, with that LLM in
place of its own, trains LoRA and the projection on images of the same world: once in bfloat16 and once with
``llm.quantize: nf4``, with the same seed, data and order. Compared are the bytes of the LLM's weights and the losses of
all steps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.common import write
from vlm.checkpoint.load import load_model
from vlm.common.paths import ASSETS
from vlm.config.api import load_config
from vlm.datasets.synthetic.export import write_caption_shards
from vlm.datasets.synthetic.language import caption
from vlm.datasets.synthetic.scene import scene_at
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.runners.train.run import run_training
from vlm.runners.train.trackers import read_log

MOST_MEMORY, LEAST_CORRELATION = 0.35, 0.995
ROW, ROWS = 96, 4
"""Tokens of a row, and rows of a step, while the LLM is made."""


@dataclass(frozen=True)
class Size:
    """How large the LLM is and how long it trains."""

    width: int
    layers: int
    hidden: int
    heads: int
    made_in: int  # steps that make the LLM
    steps: int  # steps of LoRA
    images: int
    batch: int = 8


SIZES = {
    "cpu": Size(width=512, layers=10, hidden=1408, heads=8, made_in=100, steps=200, images=800, batch=4),
    "small": Size(width=64, layers=2, hidden=128, heads=2, made_in=4, steps=4, images=32, batch=4),
}


def make_llm(folder: Path, size: Size) -> dict[str, Any]:
    """Train a LLaMA on captions and write it as a Hugging Face folder in bfloat16; what it cost."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    start = time.perf_counter()
    shutil.copytree(ASSETS / "tiny" / "llm", folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tokenizer = Tokenizer.from_folder(folder)
    rows = json.loads((ASSETS / "tiny" / "llm" / "config.json").read_text())["vocab_size"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=size.width,
            intermediate_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    ids: list[int] = []
    for number in range(size.made_in * 24):
        ids += [1, *tokenizer.encode(caption(scene_at(7, number, split="captions"))), 2]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    losses = []
    for step in range(size.made_in):
        places = torch.randint(0, len(ids) - ROW, (ROWS,)).tolist()
        batch = torch.tensor([ids[place : place + ROW] for place in places])
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 20)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.to(torch.bfloat16).save_pretrained(folder)
    count = sum(p.numel() for p in model.parameters())
    seconds = round(time.perf_counter() - start, 1)
    return {"parameters": count, "steps": size.made_in, "seconds": seconds, "loss": [losses[0], losses[-1]]}


def write_run(work: Path, size: Size) -> Path:
    """The run's YAML file: the quickstart's composition with the new LLM, LoRA and the projection trained."""
    file = work / "run.yaml"
    composition = {
        "arch": "tiny",
        "model_type": "minigpt4",
        "llama_model": str(work / "llm"),
        "max_txt_len": 96,
        "end_sym": "\n",
        "llm": {"lora": {"r": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}},
        "train": {"llm.lora": True},
    }
    run = {
        "task": "image_text_pretrain",
        "lr_sched": "cosine",
        "init_lr": 3e-4,
        "min_lr": 1e-5,
        "warmup_lr": 1e-5,
        "warmup_steps": max(1, size.steps // 10),
        "weight_decay": 0.0,
        "max_steps": size.steps,
        "iters_per_epoch": size.steps,
        "amp": True,
        "amp_dtype": "bf16",
        "num_workers": 0,
        "log_freq": 1,
        "device": "cpu",
        "report": False,
        "trackers": ["jsonl"],
    }
    data = {"tiny_captions": {"batch_size": size.batch, "build_info": {"storage": str(work / "shards")}}}
    file.write_text(json.dumps({"model": composition, "datasets": data, "run": run}))
    return file


def train(file: Path, mode: str | None) -> dict[str, Any]:
    """One run; its losses, its seconds, and the bytes of the LLM's frozen weights."""
    options = [f"run.output_dir={file.parent / (mode or 'bf16')}", f"model.llm.quantize={mode or 'null'}"]
    cfg = load_config(file, options, train=True)
    model = load_model(cfg, device="cpu", dtype=torch.bfloat16, training=True)
    frozen = [p for p in model.llm.parameters() if not p.requires_grad] + list(model.llm.buffers())
    layers = [p for p in model.llm.layers().parameters() if not p.requires_grad]
    size = {
        name: sum(t.numel() * t.element_size() for t in part) for name, part in (("llm", frozen), ("layers", layers))
    }
    del model, frozen, layers
    start = time.perf_counter()
    run_training(cfg)
    seconds = time.perf_counter() - start
    losses = [r["loss"] for r in read_log(Path(cfg.run.output_dir) / "log.jsonl") if r["kind"] == "train"]
    return {"bytes": size, "seconds": round(seconds, 1), "losses": losses}


def measure(size: Size, work: Path) -> dict[str, Any]:
    """The whole comparison, in an empty folder."""
    made = make_llm(work / "llm", size)
    write_caption_shards(work / "shards", size.images, seed=3)
    file = write_run(work, size)
    sides = {"bf16": train(file, None), "nf4": train(file, "nf4")}
    curves = torch.tensor([side["losses"] for side in sides.values()], dtype=torch.float64)
    correlation = float(torch.corrcoef(curves)[0, 1])
    memory = {part: sides["nf4"]["bytes"][part] / sides["bf16"]["bytes"][part] for part in ("llm", "layers")}
    last = curves[:, -20:].mean(dim=1).tolist()
    return {
        "what": "LoRA on an LLM in 4 bits (nf4) against LoRA on the same one in bfloat16",
        "llm": made,
        "steps": size.steps,
        "memory_of_bf16": {part: round(value, 4) for part, value in memory.items()},
        "correlation": round(correlation, 5),
        "last_20_losses": dict(zip(sides, (round(value, 4) for value in last), strict=True)),
        "largest_difference": round(float((curves[0] - curves[1]).abs().max()), 4),
        "seconds": {name: side["seconds"] for name, side in sides.items()},
        "goals": {"memory_of_bf16": MOST_MEMORY, "correlation": LEAST_CORRELATION},
        "reached": memory["llm"] <= MOST_MEMORY and correlation >= LEAST_CORRELATION,
        "losses": {name: [round(value, 4) for value in side["losses"]] for name, side in sides.items()},
    }


def main() -> None:
    """Measure, and write ``benchmarks/results/qlora.json`` (not with ``--size small``)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        result = measure(SIZES[arguments.size], Path(work))
    if arguments.size != "small":
        print("written:", write("qlora", result))
    print(json.dumps({key: value for key, value in result.items() if key != "losses"}))


if __name__ == "__main__":
    main()
