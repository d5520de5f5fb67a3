"""From a Hugging Face folder with a chat template to answers: training, chat, page, few-shot examples, generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from vlm.cli.main import main
from vlm.common.types import MEDIA_TOKEN
from vlm.inference.engine import Engine
from vlm.inference.few_shot import read_examples
from vlm.inference.session import ChatSession
from vlm.inference.streaming import join
from vlm.serve.gradio.session import PageChat

from ..processors.chat_families import FAMILIES, write_tokenizer

DATA = Path(__file__).parents[2] / "docs" / "extend" / "examples" / "data"
RED = str(DATA / "red.png")
GREEDY = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 12}


def write_llm(folder: Path) -> None:
    """A tiny LLaMA with the tokenizer and template of a family whose end of a turn is not its end token."""
    folder.mkdir()
    tokenizer = write_tokenizer(folder, FAMILIES["stablelm2"])
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, eos_token_id=ends[0], **sizes)
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)


def write_yaml(folder: Path, **model: Any) -> Path:
    """A composition without a template, and a run that memorises four images."""
    llm = str(folder / "llm")
    size = {"options": {"depth": 1, "embed_dim": 24, "num_heads": 2}, "image_size": 32}
    content = {
        "model": {
            "vision": {"name": "timm", "model": "vit_tiny_patch16_224", **size},
            "bridge": [{"name": "linear"}],
            "llm": {"name": "hf", "path": llm, "dtype": "fp32"},
            "image": {"size": 32},
            "train": ["bridge.*", "llm.*", "vision.*"],
            "weights": [{"format": "hf_llm", "path": llm, "into": "llm"}, {"format": "random", "into": "vision"}],
            **model,
        },
        "datasets": {
            "colors": {
                "format": "table",
                "batch_size": 4,
                "build_info": {"ann_path": str(DATA / "colors.jsonl"), "image_path": str(DATA)},
            }
        },
        "run": {
            "max_steps": 40, "init_lr": 1e-2, "min_lr": 1e-2, "warmup_steps": 0, "log_freq": 100, "num_workers": 0,
            "device": "cpu", "output_dir": str(folder / "run"), "amp": False,
        },
    }  # fmt: skip
    file = folder / "colors.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("chat")
    write_llm(folder / "llm")
    assert main(["train", str(write_yaml(folder))]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def engine(run: Path) -> Engine:
    return Engine.load(run, "cpu")


def test_the_template_of_the_tokenizer_is_the_default_and_stored(run: Path, engine: Engine) -> None:
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["model"]["template"]["name"] == "hf_chat"
    assert engine.processor.template.end == "<|im_end|>"


def test_a_trained_answer_ends_with_its_turn(engine: Engine) -> None:
    question = [{"role": "user", "content": [{"type": "image", "image": RED}, "What color is it?"]}]
    (ids,) = engine.generate_ids([question], engine.options(**GREEDY))
    assert engine.processor.tokenizer.decode(ids, skip_special=False) == "red<|im_end|>"
    assert engine.chat("What color is it?", image=RED, **GREEDY) == "red"
    assert join(engine.stream("What color is it?", image=RED, **GREEDY)) == "red"


def test_a_session_writes_what_was_trained(engine: Engine) -> None:
    talk = ChatSession(engine, engine.options(**GREEDY), system="Be kind.")
    assert talk.chat("What color is it?", image=RED) == "red"
    talk.ask("And now?")
    text = engine.text(talk.prompt())
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n<ImageHere>What color is it?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert talk.chat(None)


def test_few_shot_examples_are_turns(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "shots.jsonl").write_text(json.dumps({"image": RED, "question": "What color is it?", "answer": "red"}))
    talk = ChatSession(engine, engine.options(**GREEDY), read_examples(tmp_path / "shots.jsonl"))
    talk.ask("What color is it?", [str(DATA / "blue.png")])
    (example,) = engine.examples([talk.prompt()])
    assert example.ids.count(MEDIA_TOKEN) == 2 and talk.answer()


def test_page(engine: Engine) -> None:
    page = PageChat({"run": engine})
    page.ask("What color is it?", [RED])
    list(page.write({"run": engine.options(**GREEDY)}))
    assert page.branches.here.replies["run"].text == "red"


def test_commands(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--greedy", "--max-new-tokens", "12", "--device", "cpu"]
    assert main(["chat", str(run), "--image", RED, "--ask", "What color is it?", *flags]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == "red"
    out = tmp_path / "out.jsonl"
    asked = ["--data", str(DATA / "colors.jsonl"), "--media-root", str(DATA), "--output", str(out)]
    assert main(["generate", str(run), *asked, *flags[1:]]) == 0
    assert [json.loads(line)["text_output"] for line in out.read_text().splitlines()] == [
        "red",
        "green",
        "blue",
        "white",
    ]


def test_a_tokenizer_without_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_llm(tmp_path / "llm")
    (tmp_path / "llm" / "chat_template.jinja").unlink()
    file = write_yaml(tmp_path)
    assert main(["config", "check", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"missing, and the tokenizer in {tmp_path / 'llm'} has no chat template; name one" in said
    own = write_yaml(tmp_path, template={"name": "hf_chat", "chat_template": FAMILIES["qwen2"].template})
    assert main(["config", "check", str(own)]) == 0
    failing = write_yaml(tmp_path, template={"name": "hf_chat", "chat_template": "{{ raise_exception('no') }}"})
    assert main(["config", "check", str(failing)]) == 2
    assert "cannot write this conversation: no" in capsys.readouterr().err
