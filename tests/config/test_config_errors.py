"""Every fault of a configuration is found, with its place and the nearest right name, all at once."""

# ruff: noqa: E501 - one fault per line
from __future__ import annotations

from pathlib import Path

import pytest

from vlm.common.errors import ConfigError
from vlm.config.api import load_config
from vlm.config.schema import ConfigProblems

GOOD = """model:
  arch: minigpt4
  model_type: pretrain_vicuna0
  llama_model: /llm
  vision: {depth: 2}
datasets:
  cc_sbu_align:
    batch_size: 2
    build_info: {storage: /data}
    vis_processor: {train: {name: blip2_image_train, image_size: 224}}
    text_processor: {train: {name: blip_caption}}
run:
  task: image_text_pretrain
  seed: 3
"""


def faults(text: str, tmp_path: Path, *options: str) -> list[str]:
    file = tmp_path / "cfg.yaml"
    file.write_text(text)
    with pytest.raises(ConfigProblems) as caught:
        load_config(file, options, check="none")
    assert isinstance(caught.value, ConfigError)
    return [str(p).replace(str(file), "cfg.yaml") for p in caught.value.problems]


def test_the_good_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "cfg.yaml").write_text(GOOD)
    assert load_config(tmp_path / "cfg.yaml", check="none").run.seed == 3


@pytest.mark.parametrize(
    ("found", "wrong", "expected"),
    [
        ("run:", "rum:", "rum (cfg.yaml:12): unknown section 'rum'; did you mean 'run'?"),
        ("llama_model:", "lama_model:", "model.lama_model (cfg.yaml:4): unknown key 'lama_model'; did you mean 'llama_model'"),
        ("vision:", "vison:", "model.vison (cfg.yaml:5): unknown key 'vison'; did you mean 'vision'"),
        ("depth:", "dept:", "model.vision.dept (cfg.yaml:5): unknown key 'dept'; did you mean 'depth'"),
        ("cc_sbu_align:", "cc_sbu_alin:", "datasets.cc_sbu_alin (cfg.yaml:7): unknown corpus"),
        ("batch_size:", "batchsize:", "datasets.cc_sbu_align.batchsize (cfg.yaml:8): unknown key 'batchsize'; did you mean 'batch_size'"),
        ("storage:", "storag:", "datasets.cc_sbu_align.build_info.storag (cfg.yaml:9): unknown key 'storag'; did you mean 'storage'"),
        ("train: {name: blip2", "trian: {name: blip2", "vis_processor.trian (cfg.yaml:10): unknown key 'trian'; did you mean 'train'"),
        ("image_size:", "imagesize:", "vis_processor.train.imagesize (cfg.yaml:10): unknown key"),
        ("blip2_image_train", "blip2_image_trian", "unknown processor 'blip2_image_trian'; did you mean 'blip2_image_train'"),
        ("seed:", "sead:", "run.sead (cfg.yaml:14): unknown key 'sead'; did you mean 'seed'"),
        ("seed: 3", "seed: three", "run.seed (cfg.yaml:14): found 'three' (a string), expected an integer"),
        ("depth: 2", "depth: two", "model.vision.depth (cfg.yaml:5): found 'two' (a string), expected an integer"),
        ("batch_size: 2", "batch_size: []", "batch_size (cfg.yaml:8): found [] (a list), expected an integer"),
        ("batch_size: 2", "batch_size: 0", "batch_size (cfg.yaml:8): found 0"),
        ("arch: minigpt4", "arch: minigpt5", "model.arch (cfg.yaml:2): unknown arch 'minigpt5'; did you mean 'minigpt4'"),
        ("pretrain_vicuna0", "pretrain_vicuna1", "unknown model_type of minigpt4 'pretrain_vicuna1'; did you mean 'pretrain_vicuna0'"),
        ("image_text_pretrain", "image_text_pretrian", "run.task (cfg.yaml:13): unknown task 'image_text_pretrian'; did you mean"),
        ("seed: 3", "lr_sched: cosin", "run.lr_sched (cfg.yaml:14): unknown scheduler 'cosin'; did you mean 'cosine'"),
        ("seed: 3", "trackers: [jsonl, tensorbord]", "run.trackers.1 (cfg.yaml:14): unknown tracker 'tensorbord'"),
        ("seed: 3", "activation_checkpointing: all", "expected one of 'none', 'torch'"),
        ("seed: 3", "valid_datasets: [x]", "run.valid_datasets.0 (cfg.yaml:14): unknown entry of valid_datasets 'x'"),
        ("seed: 3", "log_freq: 0", "run.log_freq (cfg.yaml:14): found 0 (an integer), expected an integer of at least 1"),
        ("llama_model: /llm", "prompt: ''", "model.llama_model (vlm/systems/minigpt4/pretrain_vicuna0.yaml:"),
        ("llama_model: /llm", "llama_model: ???", "model.llama_model (cfg.yaml:4): must be set: folder of Vicuna v0"),
        ("llama_model: /llm", "llama_model: 3", "model.llama_model (cfg.yaml:4): found 3 (an integer), expected a string"),
        ("llama_model: /llm", "vit_model: other\n  llama_model: x", "expected one of eva_clip_g"),
        ("vision: {depth: 2}", "llm: {name: hff}", "model.llm.name (cfg.yaml:5): unknown llm 'hff'; did you mean 'hf'"),
        ("vision: {depth: 2}", "bridge: {name: linear}", "model.bridge (cfg.yaml:5): found"),
        ("vision: {depth: 2}", "bridge: [{depth: 1}]", "model.bridge.0 (cfg.yaml:5): found"),
        ("vision: {depth: 2}", "weights: [{format: evaa, path: x}]", "unknown weight format 'evaa'; did you mean 'eva'"),
        ("vision: {depth: 2}", "weights: [{fromat: eva}]", "model.weights.0.fromat (cfg.yaml:5): unknown key 'fromat'"),
        ("vision: {depth: 2}", "train: {bridge.*: maybe}", "model.train.bridge.* (cfg.yaml:5): found 'maybe'"),
        ("vision: {depth: 2}", "text: {max_len: 3}", "model.text.max_len (cfg.yaml:5): unknown key 'max_len'"),
        ("vision: {depth: 2}", "image: {size: 448}", "but vision.image_size is 224"),
        ("vision: {depth: 2}", "vision: {depth: '${params.dept}'}", "model.vision.depth (cfg.yaml:5)"),
        ("vision: {depth: 2}", "vision: {depth: '${'}", "not a valid interpolation"),
        ("vision: {depth: 2}", "vision: 3", "model.vision (cfg.yaml:5): found 3"),
        ("datasets:", "plugins: x\ndatasets:", "plugins (cfg.yaml:6): found 'x', expected a list"),
    ],
)  # fmt: skip
def test_one_fault(found: str, wrong: str, expected: str, tmp_path: Path) -> None:
    assert found in GOOD
    said = faults(GOOD.replace(found, wrong, 1), tmp_path)
    assert any(expected in line for line in said), said
    assert len(said) <= 2, said


def test_all_faults_of_all_levels_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("depth:", "dept:").replace("storage:", "storag:").replace("seed: 3", "seed: x\n  bata2: 1")
    said = faults(text.replace("llama_model: /llm", "end_sm: a"), tmp_path, "run.max_epoch=many", "model.arhc=x")
    paths = {line.split(" ")[0].rstrip(":") for line in said}
    assert paths >= {
        "model.vision.dept",
        "datasets.cc_sbu_align.build_info.storag",
        "run.seed",
        "run.bata2",
        "run.max_epoch",
        "model.end_sm",
        "model.arhc",
        "model.llama_model",
    }


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("run.warmup_stepz=3", "run.warmup_stepz (--options run.warmup_stepz): unknown key 'warmup_stepz'; did you mean 'warmup_steps'"),
        ("rum.seed=3", "unknown section 'rum'; did you mean 'run'"),
        ("datasets.cc_sbu.batch_size=2", "datasets.cc_sbu.batch_size (--options datasets.cc_sbu.batch_size): unknown dataset 'cc_sbu'; did you mean 'cc_sbu_align'"),
        ("model.vision.depth=deep", "model.vision.depth (--options model.vision.depth): found 'deep'"),
        ("model.bridge.5.bias=true", "model.bridge is a list of 2 and has no element 5"),
        ("model.model_type=pretrain_llama3", "unknown model_type of minigpt4 'pretrain_llama3'"),
        ("model.image_size=big", "model.image_size (--options model.image_size): found 'big'"),
    ],
)  # fmt: skip
def test_options_are_checked_like_the_file(option: str, expected: str, tmp_path: Path) -> None:
    said = faults(GOOD, tmp_path, option)
    assert any(expected in line for line in said), said


def test_missing_weight_files_are_reported_together(tmp_path: Path) -> None:
    file = tmp_path / "cfg.yaml"
    file.write_text(
        GOOD.replace("/llm", "/no/llm\n  ckpt: /no/ckpt\n  q_former_model: /no/qformer\n  vit_path: https://x/eva.pth")
    )
    with pytest.raises(ConfigProblems) as caught:
        load_config(file)
    assert {p.path for p in caught.value.problems} == {"model.llama_model", "model.q_former_model", "model.ckpt"}
    assert "'/no/llm', but there is no such file or folder; expected: folder of Vicuna v0" in str(caught.value)


def test_no_file_no_section_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="not a run folder"):
        load_config(tmp_path)
    assert any("model: missing" in line or "model (" in line for line in faults("run: {seed: 1}\n", tmp_path))
    assert any("llm" in line for line in faults("model: {vision: eva_vit}\n", tmp_path))


@pytest.mark.parametrize(
    ("found", "wrong", "expected"),
    [
        ("vision: {depth: 2}", "train: [[bridge]]", "model.train (cfg.yaml:5): found"),
        ("vision: {depth: 2}", "params: 3", "model.params (cfg.yaml:5): found 3, expected a mapping"),
        ("llama_model: /llm", "llama_model: '${'", "model.llama_model (cfg.yaml:4): found '${', which is not a valid"),
        ("batch_size: 2", "type: []", "unknown type of cc_sbu_align '[]'"),
        ("datasets:", "plugins: ['']\ndatasets:", "plugins (cfg.yaml:6): found"),
        ("datasets:", "evaluation_datasets: 3\ndatasets:", "evaluation_datasets (cfg.yaml:6): found 3, expected a mapping"),
        ("build_info: {storage: /data}", "build_info: 3", "build_info (cfg.yaml:9): found 3"),
        ("vis_processor: {train: {name: blip2_image_train, image_size: 224}}", "vis_processor: [1]", "expected a mapping with keys train, eval"),
        ("vision: {depth: 2}", "weights: {format: eva}", "model.weights (cfg.yaml:5): found"),
        ("vision: {depth: 2}", "llm: [1]", "model.llm (cfg.yaml:5): found [1], expected a mapping with `name`"),
        ("vision: {depth: 2}", "llm: null", "model.llm (cfg.yaml:5): missing"),
    ],
)  # fmt: skip
def test_values_of_an_absurd_kind_are_reported_too(found: str, wrong: str, expected: str, tmp_path: Path) -> None:
    said = faults(GOOD.replace(found, wrong, 1), tmp_path)
    assert any(expected in line for line in said), said


def test_a_missing_tokenizer_folder_is_named_by_its_parameter(tmp_path: Path) -> None:
    model = {"arch": "mmgpt", "model_type": "open_flamingo_9b_lora", "tokenizer_path": "/no/tokenizer"}
    with pytest.raises(ConfigProblems, match="model.tokenizer_path: found '/no/tokenizer', but there is no such file"):
        load_config({"model": {**model, "lm_path": str(tmp_path), "pretrained_path": str(tmp_path)}})


def test_options_of_an_answer_are_checked() -> None:
    """``model.generation`` takes what an answer can have, and keeps only what was said."""
    model = {
        "llm": {"name": "hf", "path": "/llm"},
        "template": "plain",
        "generation": {"num_beams": 3, "stop": ["\n"]},
    }
    cfg = load_config({"model": model}, check="none")
    assert cfg.model.generation.given == {"num_beams": 3, "stop": ("\n",)}
    assert load_config(cfg.resolved, check="none").model.generation.given == cfg.model.generation.given
    with pytest.raises(ConfigProblems, match=r"(?s)model\.generation\.beams.*unknown key.*num_beams: found 0"):
        load_config({"model": {**model, "generation": {"beams": 2, "num_beams": 0}}}, check="none")


def test_inserts_are_checked() -> None:
    model = {"llm": {"name": "hf", "path": "/llm"}, "template": "plain", "inserts": ["adapter"]}
    cfg = load_config({"model": model}, check="none")
    assert [part.name for part in cfg.model.inserts] == ["adapter"]
    again = load_config(cfg.resolved, check="none")
    assert [part.config for part in again.model.inserts] == [part.config for part in cfg.model.inserts]
    with pytest.raises(ConfigProblems, match=r"model\.inserts\.0\.name.*unknown insert 'adaptor'.*'adapter'"):
        load_config({"model": {**model, "inserts": [{"name": "adaptor"}]}}, check="none")
    with pytest.raises(ConfigProblems, match=r"(?s)model\.inserts\.0\.evry.*did you mean 'every'"):
        load_config({"model": {**model, "inserts": [{"name": "adapter", "evry": 1}]}}, check="none")
    with pytest.raises(ConfigProblems, match=r"model\.inserts.*expected a list such as \[{name: adapter}\]"):
        load_config({"model": {**model, "inserts": {"name": "adapter"}}}, check="none")
