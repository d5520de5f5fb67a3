"""PaliGemma: training on prefix and suffix is that of transformers, in batches and packed rows."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.installed.folders import tokenizer
from tests.golden.installed.paligemma import CASES, SMALL, TEXT
from vlm.common.types import MEDIA_TOKEN, Example, Image, Message, Sample
from vlm.inference.architectures.reference import Reference
from vlm.inference.engine import Engine
from vlm.processors.collate import collate, collate_rows

IMAGES = [np.random.default_rng(seed).integers(0, 256, (50, 60, 3), dtype=np.uint8) for seed in range(3)]
PAIRS = (("caption en", "a boat on the sea"), ("what is it?", "a house"), ("is it red or blue, or what?", "no"))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_loss_of_a_suffix(case, tmp_path: Path) -> None:
    case.build(tmp_path)
    engine, theirs = Engine.load(tmp_path, "cpu"), Reference(tmp_path, torch.device("cpu"))
    examples: list[Example] = []
    wanted = []
    for pixels, (question, answer) in zip(IMAGES, PAIRS, strict=True):
        messages = (Message("user", [Image(pixels), question]), Message("assistant", answer))
        examples.append(engine.processor.encode_train(Sample(messages), random.Random(0)))
        inputs = theirs.processor(images=pixels, text=f"<image>{question}", suffix=answer, return_tensors="pt")
        ids = [i for i in inputs["input_ids"][0].tolist() if i != theirs.image_token_id]
        assert [i for i in examples[-1].ids if i >= 0] == ids
        wanted.append(theirs.model(**inputs).loss.item() * int((inputs["labels"][0, 1:] >= 0).sum()))
    found = [engine.model(collate([one], 0)).loss_sum.item() for one in examples]
    assert found == pytest.approx(wanted, abs=1e-3)
    for batch in (collate(examples, 0), collate_rows([examples[:2], examples[2:]], 0)):
        assert engine.model(batch).loss_sum.item() == pytest.approx(sum(wanted), abs=2e-3)


def test_foundations_become_a_model(tmp_path: Path) -> None:
    from transformers import GemmaConfig, GemmaForCausalLM, SiglipVisionConfig, SiglipVisionModel

    words = tokenizer((), chat=None)
    SiglipVisionModel(SiglipVisionConfig(**SMALL, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vision")
    GemmaForCausalLM(GemmaConfig(**TEXT, vocab_size=len(words))).save_pretrained(tmp_path / "llm")
    words.save_pretrained(tmp_path / "llm")
    paths = [f"model.vision_path={tmp_path / 'vision'}", f"model.llm_path={tmp_path / 'llm'}", "model.image_size=32"]
    engine = Engine.load("paligemma/compose", "cpu", options=paths, allow_random=True)
    messages = [Message("user", [Image(IMAGES[0]), "caption en"])]
    bytes_of = words("caption en\n", add_special_tokens=False).input_ids
    assert engine.processor.encode_chat(messages).ids == [MEDIA_TOKEN, words.bos_token_id, *bytes_of]
    inputs = engine.fuse(engine.examples([messages]))
    assert inputs.blocks is not None
    assert bool((inputs.blocks == 1).all())
