"""VisualCLA's two stages from the shipped files at tiny size, the run merged, and own data from the delta."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image as Images

from vlm.checkpoint.safe import read_tensors
from vlm.cli.main import main
from vlm.common.types import Image, Message, Text
from vlm.config.api import load_config
from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION
from vlm.runners.train.run import run_training

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OPEN = ROOT / "tests" / "golden" / "visualcla" / "open"
TEXT, VISION, DELTA = (str(OPEN / name) for name in ("text_model", "vision_model", "lora_model"))
TINY = {"text_model": TEXT, "vision_model": VISION, "image_size": 28, "num_query_token": 5}
SIZES = {"num_query_tokens": 5, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SCRATCH = {
    **TINY,
    "lora_r": 4,
    "lora_alpha": 8,
    "bridge": [{"name": "bert_resampler", **SIZES}, {"name": "linear"}],
    "llm": {"vocab_size": 485},
}
COLOURS = {"red": "图片是红的。", "green": "图片是上面的。", "blue": "图片里有一条小船。"}
TRAINED = {
    "LoRA in the encoder": ("vision.model.", ".lora_B."),
    "LoRA in the LLM": ("llm.model.", ".lora_B."),
    "resampler": ("bridge.0.layers.", ".weight"),
    "queries": ("bridge.0.query_tokens", ""),
    "projection": ("bridge.1.proj.weight", ""),
    "token embeddings": ("llm.model.model.embed_tokens", ""),
    "head": ("llm.model.lm_head", ""),
}
"""What trains in both stages -> beginning and part of its names."""


def run(name: str, folder: Path, model: dict[str, Any], data: dict[str, dict[str, Any]], **options: Any) -> Path:
    """Train with a shipped file whose gaps and sizes are filled in; the run folder."""
    cfg = yaml.safe_load((ROOT / "train_configs" / f"{name}.yaml").read_text())
    cfg["model"] |= model
    for dataset, build in data.items():
        cfg["datasets"][dataset]["build_info"] |= build
    cfg["run"] |= {"device": "cpu", "amp": False, "num_workers": 0, "trackers": ["jsonl"], "report": False}
    cfg["run"] |= {"init_lr": 0.02, "warmup_steps": 2, "max_steps": 30, "save_freq": 0, "log_freq": 1}
    cfg["run"] |= {"output_dir": str(folder / name), "group_by_length": 0, "batch_size": None} | options
    if cfg["run"].get("mixing") == "sample":
        cfg["run"]["batch_size"] = 6
    for entry in cfg["datasets"].values():
        entry["batch_size"] = 3
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(cfg), encoding="utf-8")
    run_training(load_config(file, check="all"))
    return folder / name


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three colours as tar shards, as conversations, as a table; text instructions."""
    folder = tmp_path_factory.mktemp("world")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for colour, caption in COLOURS.items():
            data = io.BytesIO()
            Images.new("RGB", (40, 30), colour).save(data, "PNG")
            (folder / f"{colour}.png").write_bytes(data.getvalue())
            for end, content in (("png", data.getvalue()), ("json", json.dumps({"caption": caption}).encode())):
                member = tarfile.TarInfo(f"{colour}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    dialogues = [
        {
            "id": c,
            "image": f"{c}.png",
            "conversations": [
                {"from": "human", "value": "<image>\n描述图像。"},
                {"from": "gpt", "value": caption},
            ],
        }
        for c, caption in COLOURS.items()
    ]
    texts = [{"instruction": "上面有什么？", "input": "", "output": "小船。"}]
    table = [{"image": f"{c}.png", "question": "描述图像。", "answer": caption} for c, caption in COLOURS.items()]
    for name, records in (("dialogues", dialogues), ("texts", texts), ("table", table)):
        (folder / f"{name}.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def stage1(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = {"captions": {"storage": str(world / "00000.tar")}}
    return run("visualcla_pretrain", tmp_path_factory.mktemp("one"), SCRATCH, data)


@pytest.fixture(scope="module")
def stage2(world: Path, stage1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run("visualcla_sft", tmp_path_factory.mktemp("two"), SCRATCH | {"ckpt": str(stage1)}, instructions(world))


def instructions(world: Path) -> dict[str, dict[str, Any]]:
    imaged = {"ann_path": str(world / "dialogues.json"), "image_path": str(world)}
    return {"instructions": imaged, "alpaca_zh": {"ann_path": str(world / "texts.json")}}


def falls(folder: Path) -> bool:
    found = losses(folder)
    assert len(found) == 30
    return sum(found[-5:]) < 0.6 * sum(found[:5])


def test_first_stage_learns_captions_without_prompt(stage1: Path) -> None:
    assert falls(stage1)
    held = trained(stage1)
    base = read_tensors(OPEN / "text_model" / "model.safetensors")
    for what, (begin, part) in TRAINED.items():
        found = [t for n, t in held.items() if n.startswith(begin) and part in n]
        assert found, what
        assert all(t.abs().sum() > 0 for t in found), what  # LoRA's B and the queries start at zero
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        ours = held[f"llm.model.{name}"]
        assert len(ours) == 485 and not torch.equal(ours[: len(base[name])], base[name])
    engine = Engine.load(stage1, "cpu")
    segments = engine.processor.template.chat_segments([Message("user", (Image("x.png"),))])
    assert [s.text for s in segments if s.text] == ["<img>", "</img>"]  # as trained: no prompt


def test_second_stage_continues_and_learns_instructions(
    world: Path, stage1: Path, stage2: Path, tmp_path: Path
) -> None:
    assert falls(stage2)
    before, after = trained(stage1), trained(stage2)
    assert before.keys() == after.keys()
    for what, (begin, part) in TRAINED.items():
        assert any(not torch.equal(before[n], after[n]) for n in after if n.startswith(begin) and part in n), what
    options = {"init_lr": 1e-12, "warmup_steps": 0, "max_steps": 1}
    still = trained(run("visualcla_sft", tmp_path, SCRATCH | {"ckpt": str(stage1)}, instructions(world), **options))
    assert all(torch.allclose(still[n], t, atol=1e-9) for n, t in before.items())


def test_the_run_merges_and_answers_alike(world: Path, stage2: Path, tmp_path: Path) -> None:
    delta, merged = tmp_path / "delta", tmp_path / "merged"
    assert main(["weights", "export", str(stage2), "--format", "visualcla-delta", "--to", str(delta)]) == 0
    names = ["--text_model", TEXT, "--vision_model", VISION, "--lora_model", str(delta), "--output_dir", str(merged)]
    assert main(["weights", "merge", *names, "--dtype", "fp32"]) == 0
    greedy = EVALUATION.replace(max_new_tokens=24, max_length=2048)
    asked = [[Message("user", (Image(str(world / f"{c}.png")), Text("描述图像。")))] for c in COLOURS]
    asked.append([Message("user", (Text("上面有什么？"),))])
    answers = [Engine.load(source, "cpu").generate(asked, greedy) for source in (stage2, merged)]
    assert answers[0] == answers[1]
    assert answers[0][3] == "小船。"


def test_own_data_from_the_delta(world: Path, tmp_path: Path) -> None:
    data = {"mine": {"ann_path": str(world / "table.json"), "image_path": str(world)}}
    folder = run("visualcla_finetune", tmp_path, TINY | {"lora_model": DELTA}, data, accum_grad_iters=1)
    assert falls(folder)
    assert any(".lora_" in n for n in trained(folder))
