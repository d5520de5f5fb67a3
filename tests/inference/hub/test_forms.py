"""Compositions that a class of transformers computes: recognised by their parts, equal by numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Images

from vlm.common.errors import UserError
from vlm.common.types import Image, Message
from vlm.config.types import Config
from vlm.inference.engine import Engine
from vlm.inference.hub.export import HubExport
from vlm.inference.hub.weights import StoredWeights
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.mlp import MLP
from vlm.testing import part, tiny_config

from .comparing import PLAIN, compare, exported, loaded
from .making import llava, saved

LLAVA = "LlavaForConditionalGeneration"
LLMS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "opt": {"model_type": "opt", "ffn_dim": 40, "word_embed_proj_dim": 32},
}


def picture(seed: int = 0) -> Images.Image:
    draw = torch.Generator().manual_seed(seed)
    return Images.fromarray(torch.randint(0, 255, (40, 52, 3), generator=draw, dtype=torch.uint8).numpy())


def check(engine: Engine, folder: Path, config: dict[str, Any]) -> Any:
    """Two questions compared; the model of transformers."""
    model = loaded(folder)
    image_id, count = config["image_token_index"], int(engine.model.visual_tokens())
    for parts in ([Image(picture()), "What is this?"], [Image(picture()), "One.", Image(picture(1)), "Which?"]):
        compare(engine, model, engine.examples([[Message("user", parts)]])[0], image_id, count)
    return model


@pytest.mark.parametrize("name", LLMS)
def test_clip_and_mlp(name: str, tmp_path: Path) -> None:
    cfg = llava(tmp_path / "run", **LLMS[name])
    engine, config, _ = exported(cfg, tmp_path / "out")
    assert config["architectures"] == [LLAVA]
    check(engine, tmp_path / "out", config)


def test_one_linear_layer_and_the_class_token(tmp_path: Path) -> None:
    engine, config, _ = exported(llava(tmp_path / "run", depth=1, keep_cls=True), tmp_path / "out")
    assert config["projector_hidden_act"] == "linear" and config["vision_feature_select_strategy"] == "full"
    check(engine, tmp_path / "out", config)


@pytest.mark.parametrize("lora", [False, True])
def test_siglip(lora: bool, tmp_path: Path) -> None:
    engine, config, _ = exported(llava(tmp_path / "run", siglip=True, lora=lora), tmp_path / "out")
    assert config["architectures"] == [LLAVA] and config["vision_feature_select_strategy"] == "full"
    check(engine, tmp_path / "out", config)


def test_shards(tmp_path: Path) -> None:
    engine, config, lines = exported(llava(tmp_path / "run"), tmp_path / "out", shard_bytes=40_000)
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 2 and max(f.stat().st_size for f in files) < 75_000  # a table of tokens is 65 kB
    check(engine, tmp_path / "out", config)


def test_lora_is_merged(tmp_path: Path) -> None:
    engine, config, _ = exported(llava(tmp_path / "run", lora=True), tmp_path / "out")
    check(engine, tmp_path / "out", config)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # of peft, about transformers
def test_lora_beside_it_as_an_adapter_of_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    cfg = llava(tmp_path / "run", lora=True)
    engine, config, lines = exported(cfg, tmp_path / "out", lora="adapter")
    assert "adapter/: LoRA of 8 layers, for peft" in lines
    base = loaded(tmp_path / "out")
    example = engine.examples([[Message("user", [Image(picture()), "What is this?"])]])[0]
    with pytest.raises(AssertionError):
        compare(engine, base, example, config["image_token_index"], int(engine.model.visual_tokens()))
    model = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    compare(engine, model, example, config["image_token_index"], int(engine.model.visual_tokens()))


def test_processor_and_template(tmp_path: Path) -> None:
    """The image processor (with PIL), the ids of the chat template and the processor's own expansion."""
    from transformers import AutoProcessor

    engine, config, lines = exported(llava(tmp_path / "run"), tmp_path / "out")
    assert [line for line in lines if "otherwise" in line] == [
        "reads otherwise than the composition: a conversation of two turns"
    ]
    processor = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    inputs = processor(images=picture(), text=text, return_tensors="pt", add_special_tokens=False)
    example = engine.examples([[Message("user", [Image(picture()), "What is this?"])]])[0]
    torch.testing.assert_close(inputs["pixel_values"], example.media[0], rtol=0, atol=1e-6)
    image_id, count = config["image_token_index"], int(engine.model.visual_tokens())
    ids = [k for i in example.ids for k in ([image_id] * count if i < 0 else [i])]
    assert inputs["input_ids"][0].tolist() == ids
    model = loaded(tmp_path / "out")
    made = model.generate(**inputs, max_new_tokens=3, **PLAIN)
    assert processor.batch_decode(made[:, len(ids) :], skip_special_tokens=True)


def test_what_is_stored_is_what_is_loaded(tmp_path: Path) -> None:
    """Tensors read one by one equal those of the loaded model, LoRA merged as peft merges it."""
    cfg = llava(tmp_path / "run", lora=True)
    weights = StoredWeights(cfg)
    assert {tuple(t.shape) for t in weights.facts.values()} == {tuple(weights.read(n).shape) for n in weights.facts}
    plain = StoredWeights(cfg, merge=False)
    layer = weights.lora[0]
    a, b = weights.matrices(layer)
    merged, base = (w.read(f"{layer}.weight") for w in (weights, plain))
    torch.testing.assert_close(merged, base + 3 * b @ a)


def test_misfits_say_why(tmp_path: Path) -> None:
    wide = saved(
        tmp_path / "wide", bridge=[part("mlp", MLP.Config(hidden_dim=48))], vision=llava(tmp_path / "x").model.vision
    )
    lines = HubExport().write(wide, tmp_path / "out")
    assert f"not {LLAVA}: the width between the two layers of the bridge is not the LLM's" in lines
    with pytest.raises(UserError, match="not the LLM's\n  fix: leave --form out"):
        HubExport(HubExport.Config(form="llava")).write(wide, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_form_that_a_server_computes_otherwise(tmp_path: Path) -> None:
    from vlm.inference.hub.forms import find_form

    cfg = saved(tmp_path / "run", text={"tokenizer": str(llava(tmp_path / "x").model.text.config.tokenizer)})
    contents = HubExport().contents(cfg)
    assert find_form(contents).architecture == "Blip2ForConditionalGeneration"
    assert find_form(contents, server="vllm").architecture == "ComposedForConditionalGeneration"
    with pytest.raises(UserError, match="vllm computes Blip2ForConditionalGeneration otherwise: it puts the rows"):
        find_form(contents, asked="blip2", server="vllm")


def test_a_target_that_exists_and_weights_that_are_missing(tmp_path: Path) -> None:
    cfg = llava(tmp_path / "run")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        HubExport().write(cfg, tmp_path / "out")
    with pytest.raises(UserError, match="random, no file of model.weights fills it"):
        HubExport().write(tiny_config(text={"tokenizer": str(cfg.model.text.config.tokenizer)}), tmp_path / "new")
    with pytest.raises(UserError, match="no LoRA"):
        HubExport(HubExport.Config(lora="adapter")).write(cfg, tmp_path / "new")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cfg = llava(tmp_path / "run")
    monkeypatch.setattr("vlm.inference.hub.export.write_planned", full)
    with pytest.raises(UserError, match="cannot be written \\(No space left on device\\); nothing was left"):
        HubExport().write(cfg, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_the_card_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    cfg = llava(tmp_path / "run")
    exported(cfg, tmp_path / "out")
    texts = {f.name: f.read_text() for f in (tmp_path / "out").iterdir() if f.suffix in (".md", ".json", ".jinja")}
    assert "README.md" in texts and "clip -> mlp -> llama" in texts["README.md"]
    assert not [name for name, text in texts.items() if str(tmp_path) in text or "/golden/" in text]
    assert json.loads(texts["generation_config.json"])["suppress_tokens"] == [512]


def test_linear_after_nothing_is_not_a_projector(tmp_path: Path) -> None:
    chain = [part("linear", Linear.Config(out_dim=20)), part("linear", Linear.Config())]
    cfg: Config = saved(tmp_path / "run", bridge=chain, vision=llava(tmp_path / "x").model.vision)
    lines = HubExport().write(cfg, tmp_path / "out")
    assert f"not {LLAVA}: it has 2 bridges, not one" in lines
