"""A tiny random composition and batches for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Example
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.qformer import QFormer
from vlm.models.build import build_model
from vlm.models.fusion.splice import Splice
from vlm.models.llm.hf import HFCausalLM
from vlm.models.vision.eva import EvaViT
from vlm.models.vlm import VLM
from vlm.processors.collate import collate, collate_rows

VOCAB = 61
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def part(name: str, config: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, config=config)


def composition(**changes: Any) -> SimpleNamespace:
    """EVA 28 px -> Q-Former (3 queries) -> linear -> LLaMA; the projection trains."""
    eva = EvaViT.Config(image_size=28, embed_dim=16, depth=2, num_heads=2)
    qformer = QFormer.Config(3, 16, 2, 2, 24)
    whole = {
        "vision": part("eva_vit", eva),
        "bridge": [part("qformer", qformer), part("linear", Linear.Config())],
        "fusion": part("splice", Splice.Config()),
        "llm": part("hf", HFCausalLM.Config(config=dict(LLAMA))),
        "train": {"bridge.1.*": True},
        "weights": [],
    }
    return SimpleNamespace(**(whole | changes))


@pytest.fixture
def compose() -> Callable[..., SimpleNamespace]:
    return composition


@pytest.fixture
def build() -> Callable[..., VLM]:
    def make(**changes: Any) -> VLM:
        torch.manual_seed(0)
        return build_model(composition(**changes))

    return make


def make_example(before: int, after: int, answer: int, media: int = 1, seed: int = 0, size: int = 28) -> Example:
    """``before`` ids, ``media`` marks with one id between, ``after`` ids, and ``answer`` supervised ids."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (before + after + answer,), generator=draw).tolist()
    marks = [MEDIA_TOKEN, 5] * media
    head = [1, *ids[:before], *marks, *ids[before : before + after]]
    told = ids[before + after :]
    images = [torch.randn(1, 3, size, size, generator=draw) for _ in range(media)]
    return Example(head + told, [IGNORE_INDEX] * len(head) + told, images, id=f"s{seed}")


def mixed() -> list[Example]:
    """Samples of different lengths with one, two and no image."""
    return [
        make_example(2, 3, 4, seed=1),
        make_example(0, 9, 2, media=2, seed=2),
        make_example(3, 0, 6, media=0, seed=3),
        make_example(1, 1, 1, seed=4),
    ]


@pytest.fixture
def examples() -> list[Example]:
    return mixed()


@pytest.fixture
def example() -> Callable[..., Example]:
    return make_example


@pytest.fixture
def batched() -> Callable[[Sequence[Example]], Batch]:
    return lambda rows: collate(rows, 0)


@pytest.fixture
def packed() -> Callable[[Sequence[Example], int], Batch]:
    def first_fit(examples: Sequence[Example], size: int) -> Batch:
        rows: list[list[Example]] = []
        for one in examples:
            fits = [row for row in rows if sum(len(e.ids) + 2 * len(e.media) for e in [*row, one]) <= size]
            fits[0].append(one) if fits else rows.append([one])
        return collate_rows(rows, 0)

    return first_fit
