"""Plain OpenFlamingo from its shipped compositions and files to an answer with examples in front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vlm.cli.main import main
from vlm.config.api import load_config
from vlm.inference.engine import Engine
from vlm.inference.few_shot import prepend_examples, read_examples
from vlm.models.build import build_model

from ..golden.helpers_mmgpt import MmgptCase
from ..inference.test_shots import CASE, FIRST, asked, file

__all__ = ["file"]


def first_release() -> dict[str, Any]:
    """The recorded files without LoRA."""
    full = MmgptCase(CASE).composition(lora="").resolved["model"]
    where = {
        "clip_path": "clip/clip.safetensors",
        "lm_path": "llama",
        "pretrained_path": "OpenFlamingo-9B/checkpoint.pt",
    }
    model: dict[str, Any] = {"arch": "open_flamingo", "model_type": "v1_9b"}
    model |= {key: str(CASE / path) for key, path in where.items()}
    model["vision"], model["bridge"] = {"config": full["vision"]["config"]}, full["bridge"]
    model["inserts"] = [{k: v for k, v in full["inserts"][0].items() if k != "lora"}]
    model["fusion"], model["image"] = {"image_token_id": 451}, {"size": full["image"]["size"]}
    return model | {"llm": {"vocab_size": 453, "banned_ids": [450, 451, 452]}}


def second_release(folder: Path) -> dict[str, Any]:
    """Files of a tiny GPT-NeoX with random weights; the tokenizer is another folder's."""
    model = first_release() | {"model_type": "v2"}
    model |= {"lm_path": str(folder / "neox"), "pretrained_path": str(folder / "checkpoint.pt")}
    model |= {"tokenizer_path": str(CASE / "llama"), "cross_attn_every_n_layers": 1}
    model |= {"num_tokens": 453, "image_token_id": 451, "ckpt": ""}
    model = {k: v for k, v in model.items() if k not in ("fusion", "llm", "inserts")}
    model["inserts"] = [{"name": "gated_xattn", "every": 1, "dim_head": 8, "heads": 3}]
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4}
    (folder / "neox").mkdir()
    (folder / "neox" / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "vocab_size": 450, **sizes}))
    torch.manual_seed(0)
    made = build_model(load_config({"model": model}, check="none").model)
    state, own = {}, {}
    for name, tensor in made.state_dict().items():
        tensor = torch.randn_like(tensor.float()) * 0.3
        part, _, rest = name.partition(".")
        theirs = rest.removeprefix("model.").replace("lm_head", "embed_out")
        if part == "bridge":
            state[f"perceiver.{rest.removeprefix('0.')}"] = tensor
        elif part == "inserts":
            number, _, inner = rest.removeprefix("0.layers.").partition(".")
            state[f"lang_encoder.gpt_neox.layers.{number}.gated_cross_attn_layer.{inner}"] = tensor
        elif part == "llm":
            own[theirs] = tensor[:450] if "embed_" in theirs else tensor
            if "embed_" in theirs:
                state[f"lang_encoder.{theirs}"] = tensor
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "checkpoint.pt")
    torch.save(own, folder / "neox" / "pytorch_model.bin")
    return model


@pytest.mark.parametrize("release", ["v1_9b", "v2"])
def test_few_shot_answer(release: str, tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    model = first_release() if release == "v1_9b" else second_release(tmp_path)
    config = tmp_path / "model.yaml"
    config.write_text(yaml.safe_dump({"model": model, "run": {"device": "cpu"}}))
    image = str(asked()[0].media[0].source)
    flags = ["--shots", str(file), "--image", image, "--ask", "What colour?", "--max-new-tokens", "6"]
    assert main(["chat", str(config), *flags]) == 0
    said = capsys.readouterr().out.strip()
    engine = Engine.load(config, "cpu")
    options = engine.default_generation().replace(max_new_tokens=6)
    assert (options.num_beams, options.length_penalty, options.do_sample) == (3, 0.0, False)
    messages = prepend_examples(read_examples(file), asked())
    assert engine.generate([messages], options) == [said]
    greedy = options.replace(num_beams=1)
    assert engine.generate_ids([messages], greedy) == engine.generate_ids([messages], greedy.replace(use_cache=False))
    other = [about(messages, FIRST)]
    assert (
        engine.fuse(engine.examples(other)).inputs_embeds.shape
        == engine.fuse(engine.examples([messages])).inputs_embeds.shape
    )
    assert not torch.equal(logits(engine, other), logits(engine, [messages]))


def about(messages: list[Any], image: Path) -> list[Any]:
    """The same conversation, its question about another image."""
    from vlm.common.types import Image, Message

    last = messages[-1]
    return [*messages[:-1], Message("user", (Image(str(image)), *last.parts[1:]))]


def logits(engine: Engine, conversations: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        return engine.model(engine.batch(engine.examples(conversations)), return_logits=True).logits


def test_faults_of_an_examples_file_come_before_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "model.yaml"
    config.write_text(yaml.safe_dump({"model": first_release()}))
    assert main(["chat", str(config), "--shots", str(tmp_path / "none.jsonl"), "--ask", "What?"]) == 2
    assert "none.jsonl: no such file" in capsys.readouterr().err
