"""Values of the right type without meaning: found when a configuration is checked, all at once."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

from vlm.cli.main import main
from vlm.common.bounds import Count, Device, Once, Range, violations
from vlm.common.errors import ConfigError, UserError
from vlm.common.registry import config_class, names, resolve
from vlm.config.api import load_config
from vlm.config.parts import TextProcessor, VisProcessor
from vlm.config.run import NO_EFFECT, Packing, RunConfig
from vlm.config.schema import Report, convert, hints, type_name
from vlm.config.types import DatasetOptions, EvaluationFiles
from vlm.inference.generation import CHAT, Generation
from vlm.models.lora import LoraOptions
from vlm.processors.image.recipe import ImageRecipe

LLM = {"name": "hf", "config": {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}}
MODEL: dict[str, Any] = {"llm": LLM, "template": "plain"}
KINDS = ("vision", "bridge", "fusion", "insert", "llm", "template", "image", "video", "text", "dataset", "benchmark")
OTHERS = (
    RunConfig, Packing, DatasetOptions, EvaluationFiles, VisProcessor, TextProcessor, Generation, LoraOptions,
    ImageRecipe.Train,
)  # fmt: skip
FREE = {"warmup_lr", "mean"}  # any finite number


def problems(**sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config({"model": MODEL, **sections}, check="none")
    return str(caught.value)


def test_all_values_of_a_run_are_reported_together() -> None:
    wrong: dict[str, Any] = {
        "max_steps": 0, "max_epoch": 0, "iters_per_epoch": 0, "accum_grad_iters": 0, "warmup_steps": -1,
        "init_lr": -1e-4, "min_lr": -1, "lr_decay_rate": 0, "weight_decay": float("nan"), "beta2": 1.0,
        "max_grad_norm": float("inf"), "warmup_lr": float("-inf"), "device": "cpu:7", "trackers": ["jsonl", "jsonl"],
        "num_workers": -1, "seed": -1, "log_freq": 0, "save_freq": -1, "val_freq": -5, "keep_last": -1,
        "max_bad_share": 1.5, "batch_size": 0, "group_by_length": -1, "report_samples": -1, "early_stop": -2,
    }  # fmt: skip
    text = problems(run=wrong)
    assert f"{len(wrong)} problems" in text
    for key in wrong:
        assert f"run.{key}: found " in text, key


@pytest.mark.parametrize("device", ["cuda:99", "cuda:-1", "cuda:", "gpu", "cpu:0", "tpu", "", "cuda:0,1", "CUDA"])
def test_devices(device: str) -> None:
    assert "run.device: found" in problems(run={"device": device})


def test_devices_that_exist_somewhere() -> None:
    for name in ("auto", "cpu", "cuda", "cuda:0", "cuda:63", "xpu:1", "mps"):
        assert convert(Device, name, (), Report()) == (True, name)


def test_every_number_of_every_part_has_a_range() -> None:
    """A new option without one is listed here: give it a type of ``vlm.common.bounds``, or name it in ``FREE``."""
    classes = [config_class(resolve(kind, name)) for kind in KINDS for name in names(kind)]
    bare = [
        f"{cls.__qualname__}.{field.name}"
        for cls in {*classes, *OTHERS} - {None}
        for field in dataclasses.fields(cls)
        if cls.__module__.startswith("vlm.") and field.name not in (*FREE, *NO_EFFECT)
        if any(kind in (int, float) for kind in parts_of(hints(cls)[field.name]))
    ]
    assert not bare


def parts_of(kind: Any) -> list[Any]:
    """The types in a type, of those with a range only the whole."""
    if get_origin(kind) is Annotated:
        return []
    return [kind, *itertools.chain.from_iterable(parts_of(a) for a in get_args(kind))]


@pytest.mark.parametrize(
    ("section", "options", "words"),
    [
        ("vision", {"name": "eva_vit", "image_size": 0, "depth": -1}, ["vision.image_size", "vision.depth"]),
        ("vision", {"name": "eva_vit", "image_size": 225}, ["image_size is 225, expected a multiple of patch_size 14"]),
        ("vision", {"name": "eva_vit", "embed_dim": 100, "num_heads": 3}, ["a multiple of num_heads, 3"]),
        ("vision", {"name": "timm", "model": "vit_tiny_patch16_22"}, ["timm has no 'vit_tiny_patch16_22'"]),
        ("bridge", [{"name": "qformer", "num_query_tokens": 0, "dropout": 1}], ["0.num_query_tokens", "0.dropout"]),
        ("bridge", [{"name": "qformer", "num_attention_heads": 7}], ["a multiple of num_attention_heads, 7"]),
        ("bridge", [{"name": "mlp", "depth": 0}], ["bridge.0.depth"]),
        ("bridge", [{"name": "mlp", "depth": 10**9}], ["bridge.0.depth"]),
        ("bridge", [{"name": "concat", "group": 0}], ["bridge.0.group"]),
        ("inserts", [{"name": "adapter", "every": 0, "first": -1}], ["inserts.0.every", "inserts.0.first"]),
        ("llm", {**LLM, "lora": {"r": 0, "alpha": 0, "dropout": -0.1}}, ["lora.r", "lora.alpha", "lora.dropout"]),
        ("llm", {**LLM, "vocab_size": 0, "banned_ids": [-1]}, ["llm.vocab_size", "llm.banned_ids.0"]),
        ("text", {"max_txt_len": 0, "tokens_per_medium": 0}, ["text.max_txt_len", "text.tokens_per_medium"]),
        ("image", {"size": 0, "std": [0, 1, 1]}, ["image.size", "image.std.0"]),
        ("image", {"mean": [0.5, 0.5]}, ["mean [0.5, 0.5]"]),
        ("image", {"pad_color": [0, 0, 256]}, ["image.pad_color.2"]),
        ("image", {"train": {"scale": [-1, 1], "flip": 2}}, ["train.scale.0", "train.flip"]),
        ("video", {"num_frames": 0, "fps": 0}, ["video.num_frames", "video.fps"]),
        ("generation", {"temperature": 0, "top_p": 1.1, "num_beams": 0}, ["temperature", "top_p", "num_beams"]),
        ("generation", {"length_penalty": float("nan"), "max_new_tokens": 0}, ["length_penalty", "max_new_tokens"]),
        ("generation", {"min_length": 50, "max_new_tokens": 10}, ["min_length: found 50, but max_new_tokens is 10"]),
    ],
)
def test_values_of_parts(section: str, options: Any, words: list[str]) -> None:
    text = problems(model={**MODEL, section: options})
    for word in words:
        assert word in text, text


def test_values_of_datasets() -> None:
    table = {"format": "table", "build_info": {"ann_path": "x.json", "flip_share": 2, "subset": -1, "seed": -1}}
    entry = {**table, "batch_size": 0, "sample_ratio": -1, "max_new_tokens": 0}
    text = problems(datasets={"mine": entry})
    for key in ("batch_size", "sample_ratio", "max_new_tokens", "build_info.flip_share", "build_info.subset"):
        assert f"datasets.mine.{key}: found" in text
    nothing = {**table, "build_info": {"ann_path": "x.json"}, "sample_ratio": 0}
    assert "no dataset is left to draw from" in problems(datasets={"mine": nothing})


def test_one_fault_is_reported_once_and_not_again_as_a_relation() -> None:
    text = problems(model={**MODEL, "bridge": [{"name": "qformer", "hidden_size": 0, "num_attention_heads": 7}]})
    assert "1 problem" in text and "bridge.0.hidden_size: found 0" in text


def test_a_warm_up_longer_than_the_run_is_named(caplog: pytest.LogCaptureFixture) -> None:
    load_config({"model": MODEL, "run": {"warmup_steps": 10, "max_steps": 5}}, check="none")
    assert "run.warmup_steps is 10, but the run has 5 steps" in caplog.text


def test_ranges_in_words() -> None:
    assert type_name(Count) == "an integer of at least 1"
    assert type_name(Annotated[float, Range(above=0, most=1)]) == "a number above 0 and at most 1"
    assert type_name(Annotated[list[int], Once()]) == "a list of an integer without repetition"
    for value in (2**70, -(2**70), float("nan"), True):
        assert convert(int, value, (), Report())[0] is False


def test_options_made_in_python_are_checked_too() -> None:
    assert violations(CHAT) == []
    with pytest.raises(UserError, match=r"(?s)top_p is nan.*temperature is inf, expected above 0"):
        CHAT.replace(temperature=float("inf"), top_p=float("nan"))


@pytest.mark.parametrize(
    "line",
    [
        "generate x --output y --batch-size 0", "data show x -n 0", "data check x --limit -1", "quickstart --seed -1",
        "chat x --gpu-id -1", "generate x --output y --max-bad-share 2", "chat x --temperature nan",
        "data show x --seed 1e3",
    ],
)  # fmt: skip
def test_numbers_of_commands(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(line.split())
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--top-p", "2"], ["--num-beams", "0"], ["--temperature", "-1"], ["--top-k", "-1"]])
def test_options_of_an_answer_on_the_command_line(
    flags: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["chat", str(tmp_path / "x.yaml"), "--ask", "q", *flags]) == 2
    assert "generation options" in capsys.readouterr().err
