"""A composition over tiles as Idefics3, from a folder that transformers wrote and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image as Images

from tests.golden.installed import smolvlm
from vlm.common.types import Image, Message
from vlm.config.api import load_config
from vlm.inference.engine import Engine
from vlm.inference.hub.composed import ComposedForm
from vlm.inference.hub.export import HubExport

from .comparing import PLAIN, loaded


@pytest.mark.parametrize("build", [smolvlm.build, smolvlm.build_smolvlm])
def test_there_and_back(build: object, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    build(tmp_path / "theirs")  # type: ignore[operator]
    lines = HubExport(HubExport.Config(dtype="fp32")).write(tmp_path / "theirs", tmp_path / "out")
    assert "Idefics3ForConditionalGeneration" in lines[0] and not any("otherwise" in line for line in lines)
    engine = Engine.load(tmp_path / "theirs", "cpu", torch.float32)
    model = loaded(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    image = Images.effect_noise((90, 60), 80).convert("RGB")
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    inputs = processor(images=[image], text=text, return_tensors="pt", add_special_tokens=False)
    example = engine.examples([[Message("user", [Image(image), "What is this?"])]])[0]
    torch.testing.assert_close(inputs["pixel_values"][0], torch.cat(example.media), rtol=0, atol=1e-6)
    with torch.no_grad():
        theirs, ours = model(**inputs).logits, engine.model(engine.batch([example]), return_logits=True).logits
    torch.testing.assert_close(theirs[..., : ours.shape[-1]], ours, rtol=0, atol=1e-4)
    made = model.generate(**inputs, max_new_tokens=20, **PLAIN)[0, inputs["input_ids"].shape[1] :].tolist()
    answer = engine.generate_ids([example], engine.options(max_new_tokens=20, stop=(), **PLAIN))[0]
    assert made[: len(answer)] == answer


def test_tiles_with_our_code(tmp_path: Path) -> None:
    """The same composition with our modelling code: the processor returns each tile, the model places it."""
    smolvlm.build(tmp_path / "theirs")
    HubExport(HubExport.Config(dtype="fp32", form="composed")).write(tmp_path / "theirs", tmp_path / "out")
    from transformers import AutoProcessor

    engine = Engine.load(tmp_path / "theirs", "cpu", torch.float32)
    model = loaded(tmp_path / "out", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    image = Images.effect_noise((90, 60), 80).convert("RGB")
    asked = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(asked, tokenize=True)
    example = engine.examples([[Message("user", [Image(image), "What?"])]])[0]
    with torch.no_grad():
        theirs, ours = model(**inputs).logits, engine.model(engine.batch([example]), return_logits=True).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    assert ComposedForm.architecture == type(model).__name__
    assert load_config(tmp_path / "out" / "composition.yaml", check="none").model.image.name == "split"
