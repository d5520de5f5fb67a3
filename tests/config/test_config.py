"""Loading a configuration: precedence, defaults that options select, composition, storing."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm.common.errors import ConfigError
from vlm.common.trust import trusting
from vlm.config.api import Config, effective, load_config
from vlm.config.tree import to_yaml

LLAMA = "model.llama_model=/llm"


def load(text: str, tmp_path: Path, *options: str) -> Config:
    file = tmp_path / "cfg.yaml"
    file.write_text(text)
    return load_config(file, options, check="none")


MINI = "model: {arch: minigpt4, model_type: pretrain_vicuna0, llama_model: /llm}\n"
FREE = """
model:
  params:
    width: {default: 48, help: width of the encoder}
    folder: {default: "???", help: folder of the LLM}
  vision: {name: eva_vit, embed_dim: "${params.width}", depth: 2, num_heads: 4, image_size: 28}
  bridge: [mlp, {name: linear, bias: false}]
  fusion: splice
  llm: {name: hf, path: "${params.folder}", lora: {r: 4}}
  template: plain
  image: {size: 28}
  train: [bridge.*, llm.lora]
"""


def test_precedence_dataclass_arch_file_option(tmp_path: Path) -> None:
    text = MINI + "run: {init_lr: 1.0}\n"
    cfg = load(text, tmp_path)
    assert cfg.run.beta2 == 0.999  # dataclass
    assert cfg.model.params["max_txt_len"] == 32  # arch file
    assert cfg.run.init_lr == 1.0  # user's file
    assert load(text, tmp_path, "run.init_lr=2").run.init_lr == 2.0
    assert load(text, tmp_path, "run.init_lr", "2").run.init_lr == 2.0


def test_parameters_reach_the_composition(tmp_path: Path) -> None:
    cfg = load(MINI, tmp_path, "model.image_size=280", "model.num_query_token=7", "model.end_sym=###")
    assert cfg.model.vision is not None
    assert cfg.model.vision.config.image_size == 280
    assert cfg.model.image.config.size == 280
    assert cfg.model.bridge[0].config.num_query_tokens == 7
    assert cfg.model.template.config.end_sym == "###"
    assert [w.format for w in cfg.model.weights] == ["eva", "blip2_qformer", "hf_llm"]


def test_options_select_other_defaults(tmp_path: Path) -> None:
    cfg = load(MINI, tmp_path, "model.model_type=pretrain_llama2")
    assert [p.name for p in cfg.model.bridge] == ["concat", "linear"]
    assert cfg.model.template.name == "llama2"
    cfg = load(MINI, tmp_path, "model.arch=minigpt_v2", "model.model_type=pretrain")
    assert cfg.model.params["image_size"] == 448
    assert cfg.model.llm.config.lora.r == 64


def test_switches_of_the_published_files(tmp_path: Path) -> None:
    v2 = "model: {arch: minigpt_v2, model_type: pretrain, llama_model: /llm}\n"
    cfg = load(v2, tmp_path, "model.lora_r=0")
    assert cfg.model.llm.config.lora is None
    assert "llm.lora" not in cfg.model.train
    assert load(v2, tmp_path).model.train["llm.lora"] is True
    cfg = load(MINI, tmp_path, "model.freeze_vit=False", "model.freeze_qformer=False", "model.low_resource=True")
    assert cfg.model.train == {"vision.*": True, "bridge.0.*": True, "bridge.1.*": True}
    assert cfg.model.vision is not None
    assert cfg.model.vision.config.precision == "fp32"
    assert cfg.model.llm.config.quantize == "int8"
    cfg = load(MINI, tmp_path, "model.has_qformer=False")
    assert [p.name for p in cfg.model.bridge] == ["concat", "linear"]
    assert cfg.model.train == {"vision.*": False, "bridge.1.*": True}


def test_the_composition_may_be_changed_below_an_arch(tmp_path: Path) -> None:
    cfg = load(MINI, tmp_path, "model.bridge.0.hidden_size=36", "model.vision.depth=2", "model.train.llm.*=true")
    assert cfg.model.bridge[0].config.hidden_size == 36
    assert cfg.model.vision is not None
    assert cfg.model.vision.config.depth == 2
    assert cfg.model.vision.config.embed_dim == 1408
    assert cfg.model.train["llm.*"] is True
    text = MINI.replace("llama_model", "template: plain, bridge: [linear], llama_model")
    cfg = load(text, tmp_path)
    assert cfg.model.template.name == "plain"
    assert [p.name for p in cfg.model.bridge] == ["linear"]


def test_a_composition_written_out_needs_no_arch(tmp_path: Path) -> None:
    cfg = load(FREE, tmp_path, "model.folder=/llm", "model.width=96")
    assert cfg.model.vision is not None
    assert cfg.model.vision.config.embed_dim == 96
    assert [p.name for p in cfg.model.bridge] == ["mlp", "linear"]
    assert cfg.model.bridge[1].config.bias is False
    assert cfg.model.llm.config.lora.r == 4
    assert cfg.model.train == {"bridge.*": True, "llm.lora": True}
    assert cfg.model.arch is None
    with pytest.raises(ConfigError, match="model.folder .*: must be set: folder of the LLM"):
        load(FREE, tmp_path)


DATA = """
datasets:
  cc_sbu_align: {batch_size: 3, build_info: {storage: /data}}
  mine:
    format: conversation_json
    sample_ratio: 2
    build_info: {ann_path: /a.json, image_path: /images}
valid_datasets:
  held_out: {format: caption_folder, build_info: {storage: /held}}
run: {valid_datasets: [held_out]}
"""


def test_datasets_come_from_corpus_files_or_are_written_out(tmp_path: Path) -> None:
    cfg = load(MINI + DATA, tmp_path)
    align, mine = cfg.datasets["cc_sbu_align"], cfg.datasets["mine"]
    assert (align.format.name, align.format.config.storage, align.batch_size) == ("caption_folder", "/data", 3)
    assert (mine.format.config.ann_path, mine.sample_ratio, mine.batch_size) == ("/a.json", 2.0, 1)
    assert list(cfg.valid_datasets) == ["held_out"]


def test_types_of_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "configs" / "datasets" / "two.yaml"
    corpus.parent.mkdir(parents=True)
    corpus.write_text(
        "format: caption_folder\nbuild_info: {storage: /a, image_ext: .png}\n"
        "types: {small: {build_info: {storage: /b}}}\n"
    )
    (tmp_path / "configs" / "models" / "minigpt4").mkdir(parents=True)
    monkeypatch.setattr("vlm.config.shipped.CORPORA", tmp_path / "configs" / "datasets")
    text = FREE + "datasets: {two: {batch_size: 2}}\n"
    options = ("model.folder=/llm", "datasets.two.type=small")
    config = load(text, tmp_path, *options).datasets["two"].format.config
    assert (config.storage, config.image_ext) == ("/b", ".png")
    assert load(text, tmp_path, options[0]).datasets["two"].format.config.storage == "/a"
    with pytest.raises(ConfigError, match="type of two 'smal'; did you mean 'small'"):
        load(text, tmp_path, options[0], "datasets.two.type=smal")


@pytest.mark.parametrize(("text", "options"), [(MINI + DATA, ()), (FREE, ("model.folder=/llm", "model.width=96"))])
def test_stored_configuration_loads_back_unchanged(text: str, options: tuple[str, ...], tmp_path: Path) -> None:
    cfg = load(text, tmp_path, *options)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(cfg.resolved))
    again = load_config(run, check="none")
    assert again.resolved == cfg.resolved
    assert effective(again) == effective(cfg)
    assert load_config(cfg.resolved, check="none").resolved == cfg.resolved


def test_parameters_of_a_stored_configuration_can_still_be_changed(tmp_path: Path) -> None:
    cfg = load(MINI, tmp_path)
    moved = load_config(cfg.resolved, ["model.llama_model=/elsewhere", "model.low_resource=true"], check="none")
    assert moved.model.llm.config.path == "/elsewhere"
    assert moved.model.llm.config.quantize == "int8"
    assert moved.model.weights[-1].path == "/elsewhere"


def test_interpolation_and_assets(tmp_path: Path) -> None:
    cfg = load("model: {arch: minigpt4, model_type: tiny}\nrun: {output_dir: 'out/${run.seed}', seed: 7}\n", tmp_path)
    assert cfg.run.output_dir == "out/7"
    assert cfg.model.llm.config.path.endswith("assets/tiny/llm")
    assert cfg.resolved["model"]["params"]["llama_model"]["default"] == "${asset:tiny/llm}"


def test_origins_name_the_line_that_decided(tmp_path: Path) -> None:
    cfg = load(MINI + "run:\n  seed: 3\n", tmp_path, "model.image_size=280")
    assert cfg.origins["run.seed"] == f"{tmp_path / 'cfg.yaml'}:3"
    assert cfg.origins["model.vision.image_size"] == "--options model.image_size"
    assert cfg.origins["model.vision.depth"].startswith("vlm/systems/minigpt4/pretrain_vicuna0.yaml:")


def test_files_are_checked_as_asked(tmp_path: Path) -> None:
    file = tmp_path / "cfg.yaml"
    file.write_text(MINI + "datasets: {cc_sbu_align: {}}\n")
    assert load_config(file, check="none").datasets == {}
    llm = tmp_path / "llm"
    llm.mkdir()
    options = [f"model.llama_model={llm}"]
    assert load_config(file, options).datasets == {}
    assert load_config(file, options, check="needed").datasets == {}
    with pytest.raises(ConfigError, match="cc_sbu_align.build_info.storage .*: must be set: folder with filter_cap"):
        load_config(file, options, check="all")
    with pytest.raises(ConfigError, match="build_info.storage .*: found '/none'"):
        load_config(file, [*options, "datasets.cc_sbu_align.build_info.storage=/none"], check="all")
    with pytest.raises(ConfigError, match="must be set"):
        load_config(file, [*options, "run.max_epoch=2"], check="needed")


def test_plugins_are_imported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config_test_plugin.py").write_text(
        "from dataclasses import dataclass\n"
        "from vlm.common.registry import register_bridge\n"
        '@register_bridge("config_test_bridge")\n'
        "class Bridge:\n"
        "    @dataclass\n"
        "    class Config:\n"
        "        depth: int = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = FREE.replace("[mlp,", "[config_test_bridge,") + "plugins: [config_test_plugin]\n"
    with pytest.raises(ConfigError, match=r"plugins.0 .*only with --trust"):
        load(text, tmp_path, "model.folder=/llm")
    with trusting():
        cfg = load(text, tmp_path, "model.folder=/llm")
    assert cfg.model.bridge[0].config.depth == 3
    assert cfg.resolved["plugins"] == ["config_test_plugin"]
    with trusting(), pytest.raises(ConfigError, match="plugins.0 .*no such module"):
        load(FREE + "plugins: [config_test_plugin_none]\n", tmp_path, "model.folder=/llm")


def test_a_file_is_its_own_arch_when_arch_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "arch.yaml").write_text(FREE.replace("model:\n", "").replace("\n  ", "\n"))
    cfg = load(f"model: {{arch: {tmp_path / 'arch.yaml'}, folder: /llm, width: 24}}\n", tmp_path)
    assert cfg.model.vision is not None
    assert cfg.model.vision.config.embed_dim == 24


def test_options_that_would_select_nothing_are_errors(tmp_path: Path) -> None:
    stored = load(MINI + DATA, tmp_path).resolved
    assert load_config(stored, ["model.arch=mini_gpt4"], check="none").model.arch == "minigpt4"
    with pytest.raises(ConfigError, match="model.model_type .*writes its composition out"):
        load_config(stored, ["model.model_type=pretrain_llama2"], check="none")
    with pytest.raises(ConfigError, match="datasets.mine.type .*written out"):
        load_config(stored, ["datasets.mine.type=other"], check="none")


@pytest.mark.parametrize(
    ("found", "wrong", "expected"),
    [
        ("bridge:", "brigde:", "brigde .*unknown key 'brigde'; did you mean 'bridge'"),
        ("help:", "hlep:", "params.width.hlep .*did you mean 'help'"),
        ("train:", "when: [{if: {widht: 3}, then: {}}]\ntrain:", "`when` asks for 'widht'; did you mean 'width'"),
    ],
)
def test_faults_of_an_arch_file(found: str, wrong: str, expected: str, tmp_path: Path) -> None:
    text = FREE.replace("model:\n", "").replace("\n  ", "\n").replace(found, wrong, 1)
    (tmp_path / "arch.yaml").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load(f"model: {{arch: {tmp_path / 'arch.yaml'}, folder: /llm}}\n", tmp_path)
