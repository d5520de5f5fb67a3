"""Tiny random models in the original layout of LLaMA."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SENTENCEPIECE = Path(__file__).parents[1] / "golden" / "minigpt4" / "open" / "llm" / "tokenizer.model"
WIDTH, HEADS, KV, HEAD, HIDDEN, LAYERS = 32, 4, 2, 8, 48, 2
BY_COLUMNS = ("wo.weight", "w2.weight")


def tensors(rows: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A whole random model by the original names."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"tok_embeddings": (rows, WIDTH), "output": (rows, WIDTH), "norm": (WIDTH,)}
    for i in range(LAYERS):
        kv = (KV * HEAD, WIDTH)
        inner = {"attention.wq": (WIDTH, WIDTH), "attention.wk": kv, "attention.wv": kv, "attention.wo": (WIDTH, WIDTH)}
        outer = {"feed_forward.w1": (HIDDEN, WIDTH), "feed_forward.w2": (WIDTH, HIDDEN)}
        outer |= {"feed_forward.w3": (HIDDEN, WIDTH), "attention_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in {**inner, **outer}.items()}
    drawn = {f"{name}.weight": torch.randn(shape, generator=draw) / 4 for name, shape in shapes.items()}
    return {name: tensor.to(dtype) for name, tensor in drawn.items()}


def write_shards(folder: Path, whole: dict[str, Tensor], count: int, by_rows: bool = False, **params: Any) -> Path:
    """``whole`` as ``count`` model-parallel files; ``by_rows``: the token table is split as since Llama 3."""
    folder.mkdir(parents=True)
    for number in range(count):
        part = {"rope.freqs": torch.ones(HEAD // 2)}
        for name, tensor in whole.items():
            columns = name.endswith(BY_COLUMNS) or (name.startswith("tok_") and not by_rows)
            part[name] = tensor if tensor.dim() == 1 else tensor.chunk(count, dim=int(columns))[number].clone()
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    stated = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV, "norm_eps": 1e-5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(stated | params))
    return folder


def write_ranks(file: Path) -> dict[bytes, int]:
    """Ranks of all bytes and a few words, in the form of tiktoken."""
    words = [b"th", b"the", b" t", b" the", b"in", b"an", b"and", b" a", b" and", b"12", b"123", "é".encode()]
    ranks = {token: rank for rank, token in enumerate([bytes([b]) for b in range(256)] + words)}
    file.write_text("".join(f"{base64.b64encode(t).decode()} {rank}\n" for t, rank in ranks.items()))
    return ranks
