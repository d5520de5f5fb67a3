"""The recorded systems, exported and loaded by transformers alone: the same logits and greedy ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm.common.types import Image, Message
from vlm.config.types import Config
from vlm.inference.engine import Engine

from ...golden.helpers_lynx import LynxCase
from ...golden.helpers_minigpt4 import ModelCase
from ...golden.helpers_mmgpt import MmgptCase
from ...golden.helpers_visualcla import VisualCLACase
from .comparing import compare, exported, loaded

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
PROMPT = "Human: <ImageHere> What is in the image? Assistant:"


def minigpt4(name: str) -> Config:
    parts = ModelCase(GOLDEN / "minigpt4" / name).parts()
    parts.image.config.size = parts.vision.config.image_size
    return Config(model=parts)


CASES = {
    "qformer": (lambda: minigpt4("open"), "Blip2ForConditionalGeneration"),
    "concat": (lambda: minigpt4("open/llama2_concat4"), "ComposedForConditionalGeneration"),
    "concat with LoRA": (lambda: minigpt4("open/v2_lora"), "ComposedForConditionalGeneration"),
    "resampler": (
        lambda: VisualCLACase(GOLDEN / "visualcla" / "open").composition(),
        "ComposedForConditionalGeneration",
    ),
    "perceiver": (lambda: LynxCase(GOLDEN / "lynx" / "open").shipped(), "ComposedForConditionalGeneration"),
    "gated": (lambda: MmgptCase(GOLDEN / "mmgpt" / "open").composition(), "ComposedForConditionalGeneration"),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_ids(name: str, tmp_path: Path) -> None:
    make, architecture = CASES[name]
    cfg = make()
    engine, config, lines = exported(cfg, tmp_path / "out")
    assert config["architectures"] == [architecture], lines
    trust = {"trust_remote_code": True} if "auto_map" in config else {}
    model = loaded(tmp_path / "out", **trust)
    assert type(model).__name__ == architecture
    size = engine.processor.image.config.size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    image_id = config.get("image_token_id", config.get("image_token_index"))
    count = int(engine.model.visual_tokens())
    questions = [[Message("user", [Image(images[0]), "What is this?"])]]
    questions.append([Message("user", [Image(images[0]), "One.", Image(images[1]), "Which is larger?"])])
    for question in questions:
        compare(engine, model, engine.examples([question])[0], image_id, count)
    again = Engine.load(tmp_path / "out", "cpu")  # the folder is a model here, too, with the same prompt
    assert again.examples([questions[0]])[0].ids == engine.examples([questions[0]])[0].ids
