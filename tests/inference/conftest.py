"""A small random composition: enough to decode with, nothing that has learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm.common.types import Image, Message, Text
from vlm.inference.engine import Engine
from vlm.systems.minigpt4.template import Vicuna0
from vlm.testing import tiny_engine

LLM = Path(__file__).parents[1] / "golden" / "minigpt4" / "open" / "llm"
SIZES = {
    "vocab_size": 512,
    "intermediate_size": 48,
    "max_position_embeddings": 320,
    "initializer_range": 0.3,  # random weights that still have an opinion
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="session")
def engine() -> Engine:
    torch.set_num_threads(1)
    return tiny_engine(LLM, Vicuna0(Vicuna0.Config()), **SIZES)


@pytest.fixture
def image():
    from PIL import Image as Images

    def make(colour: str = "red") -> Image:
        return Image(Images.new("RGB", (8, 8), colour))

    return make


@pytest.fixture
def ask(image):
    """``ask("text", "red", "blue")``: one question about plain images."""

    def make(text: str, *colours: str) -> list[Message]:
        return [Message("user", (*(image(c) for c in colours), Text(text)))]

    return make
