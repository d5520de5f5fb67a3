"""The composition of SmolVLM from folders of its foundations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.golden.installed.folders import tokenizer
from vlm.common.types import Image, Message
from vlm.inference.engine import Engine


def test_foundations_become_a_model(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    words = tokenizer((), chat="{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}")
    SiglipVisionModel(SiglipVisionConfig(**small, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vision")
    LlamaForCausalLM(LlamaConfig(**small, vocab_size=len(words))).save_pretrained(tmp_path / "llm")
    words.save_pretrained(tmp_path / "llm")
    paths = [f"model.vision_path={tmp_path / 'vision'}", f"model.llm_path={tmp_path / 'llm'}"]
    sizes = ["model.image_size=32", "model.longest=64", "model.factor=2"]
    engine = Engine.load("smolvlm/compose", "cpu", options=[*paths, *sizes], allow_random=True)
    image = np.zeros((40, 60, 3), np.uint8)
    example = engine.processor.encode_chat([Message("user", [Image(image), "What?"])])
    assert [tuple(m.shape) for m in example.media] == [(1, 3, 32, 32)] * 5
    assert engine.model.visual_tokens() == 4
    assert isinstance(engine.chat("What?", image=image, max_new_tokens=3), str)
