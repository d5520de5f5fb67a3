"""A small random composition: enough to decode with, nothing that has learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vlm.common.types import Features, Image, Message, Text
from vlm.inference.engine import Engine
from vlm.models.fusion.splice import Splice
from vlm.models.llm.hf import HFCausalLM
from vlm.models.vlm import VLM
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.systems.minigpt4.template import Vicuna0

LLM = Path(__file__).parents[1] / "golden" / "minigpt4" / "open" / "llm"
SIZES = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 320,
    "initializer_range": 0.3,  # random weights that still have an opinion
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Mean(nn.Module):
    """An image as three tokens: mean colours of its thirds, stretched to the LLM's width."""

    out_dim, num_tokens, calls = 32, 3, 0

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 32)

    def forward(self, pixels: torch.Tensor) -> Features:
        self.calls += len(pixels)
        thirds = pixels.unflatten(-2, (3, -1)).mean(dim=(-1, -2))  # [n, f, 3, 3]
        return Features(self.lift(thirds.transpose(-1, -2)))


@pytest.fixture(scope="session")
def engine() -> Engine:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vision, llm = Mean(), HFCausalLM(HFCausalLM.Config(config=SIZES))
    model = VLM(vision, [], llm)
    model.fusion = Splice(Splice.Config(), llm)
    processor = Processor(
        Tokenizer.from_folder(LLM), Vicuna0(Vicuna0.Config()), ImageRecipe(ImageRecipe.Config(size=6))
    )
    return Engine(model, processor)


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
