"""BLIP-2 and InstructBLIP there and back: a folder of transformers, the composition, and a folder again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.golden.installed import blip2
from vlm.common.errors import UserError
from vlm.config.api import load_config
from vlm.inference.architectures.against import compare, verify
from vlm.inference.architectures.reference import Answer
from vlm.inference.architectures.source import model_section
from vlm.inference.engine import Engine
from vlm.inference.hub.export import HubExport

BUILDERS = {"blip2": blip2.build, "instructblip": blip2.build_instruct}
CLASSES = {"blip2": "Blip2ForConditionalGeneration", "instructblip": "InstructBlipForConditionalGeneration"}


@pytest.mark.parametrize("name", BUILDERS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """The same tensors but for the bias of the keys, which changes nothing; transformers answers as the composition."""
    folder, back = tmp_path / name, tmp_path / "back"
    BUILDERS[name](folder)
    lines = HubExport(HubExport.Config(dtype="fp32")).write(folder, back)
    assert CLASSES[name] in lines[0]
    assert "text = 'What is this?'\ninputs = processor(images=Image.open" in (back / "README.md").read_text()
    before, after = (load_file(each / "model.safetensors") for each in (folder, back))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        if key.endswith("qkv.bias"):
            width = len(tensor) // 3
            assert not after[key][width : 2 * width].any()
            tensor[width : 2 * width] = 0
        assert torch.equal(tensor, after[key]), key
    found = verify(back, 3, 0, torch.device("cpu"), torch.float32)
    assert found.same(1e-4), found


def test_a_prompt_with_words_before_the_image(tmp_path: Path) -> None:
    """BLIP-2's processor leaves the image where it is; InstructBLIP's cannot."""
    folders = {name: tmp_path / name for name in BUILDERS}
    for name, folder in folders.items():
        BUILDERS[name](folder)
        section = model_section(folder)
        section["template"] = {"name": "plain", "user": "Q: ", "assistant": "A: ", "media_token": "<image>"}
        cfg = load_config({"model": section})
        if name == "instructblip":
            with pytest.raises(UserError, match="its prompts do not begin with the image"):
                HubExport(HubExport.Config(form=name)).write(cfg, tmp_path / "none")
        else:
            HubExport(HubExport.Config(dtype="fp32")).write(cfg, tmp_path / "words")
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tmp_path / "words")
    engine = Engine.load(folders["blip2"], "cpu")
    text = f"Q: {'<image>' * blip2.QUERIES} what?"
    ids = processor(images=torch.zeros(3, 42, 42), text=text, add_special_tokens=False).input_ids[0]
    assert ids.count(engine.processor.media_id) == blip2.QUERIES and ids[0] != engine.processor.media_id


def test_numbers_that_are_none_are_not_the_same() -> None:
    good = Answer([1], [], torch.zeros(1, 3), [2])
    bad = Answer([1], [], torch.full((1, 3), math.nan), [2])
    for pairs in ([good, bad, good], [bad, good, good]):
        assert not compare(pairs, [good] * 3).same(1.0)
