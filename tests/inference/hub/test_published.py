"""Compositions of published architectures: over tiles as Idefics3 and back, and each with our modelling code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Images

from tests.golden.installed import blip2, llava, paligemma, qwen2_vl, smolvlm
from vlm.common.errors import UserError
from vlm.common.types import Image, Message
from vlm.inference.architectures.against import verify
from vlm.inference.engine import Engine
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


@pytest.mark.parametrize("build", [paligemma.build, paligemma.build_second])
def test_a_prompt_that_is_a_prefix(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "theirs")
    lines = HubExport(HubExport.Config(dtype="fp32")).write(tmp_path / "theirs", tmp_path / "out")
    assert "PaliGemmaForConditionalGeneration" in lines[0]
    found = verify(tmp_path / "out", 3, 0, torch.device("cpu"), torch.float32)
    assert found.same(1e-4), found


BUILDERS = {
    "tiles": smolvlm.build,
    "prefix": paligemma.build,
    "images of any size": qwen2_vl.build,
    "a bridge that reads the question": blip2.build_instruct,
    "hf_vision": llava.build,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_with_our_code(name: str, tmp_path: Path) -> None:
    """Any published architecture with our modelling code, in a folder that needs no other."""
    from transformers import AutoProcessor

    theirs, out = tmp_path / "theirs", tmp_path / "out"
    BUILDERS[name](theirs)
    engine = Engine.load(theirs, "cpu", torch.float32)
    HubExport(HubExport.Config(dtype="fp32", form="composed")).write(theirs, out)
    theirs.rename(tmp_path / "gone")
    model = loaded(out, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(out, trust_remote_code=True)
    image = Images.effect_noise((90, 60), 80).convert("RGB")
    asked = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]}]
    inputs = processor.apply_chat_template(asked, tokenize=True)
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    begin = "question" in name  # its begin id follows the image, where no chat template writes it
    in_two_steps = processor(text=text, images=[image], return_tensors="pt", add_special_tokens=begin)
    assert torch.equal(in_two_steps["input_ids"], inputs["input_ids"])
    again = Engine.load(out, "cpu", torch.float32)
    example, other = (e.examples([[Message("user", [Image(image), "What is it?"])]])[0] for e in (engine, again))
    assert example.ids == other.ids and example.texts == other.texts
    with torch.no_grad():
        found, ours = model(**inputs).logits, engine.model(engine.batch([example]), return_logits=True).logits
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-4)
    made = model.generate(**inputs, max_new_tokens=8, **PLAIN)[0, inputs["input_ids"].shape[1] :].tolist()
    assert made == engine.generate_ids([example], engine.options(max_new_tokens=8, stop=(), **PLAIN))[0]


def test_nothing_in_an_exported_folder_is_run(tmp_path: Path) -> None:
    """Our library reads the composition alone, under the rules for files of others."""
    llava.build(tmp_path / "theirs")
    out = tmp_path / "out"
    HubExport(HubExport.Config(dtype="fp32", form="composed")).write(tmp_path / "theirs", out)
    (out / "modeling_vlm.py").write_text("raise SystemExit('run')\n")
    assert Engine.load(out, "cpu").model.vision is not None
    text = (out / "composition.yaml").read_text()
    (out / "composition.yaml").write_text(text.replace("name: hf_vision", "name: evil.module:Tower", 1))
    if "evil" not in (out / "composition.yaml").read_text():
        (out / "composition.yaml").write_text(text.replace("name: clip", "name: evil.module:Tower", 1))
    with pytest.raises(UserError, match="would import the module 'evil.module'"):
        Engine.load(out, "cpu")
    (out / "composition.yaml").write_text(text)
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        Engine.load(out, "cpu")
