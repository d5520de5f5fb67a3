"""The key sets of all versions of the published train and evaluation files, each in a small file of its own."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from vlm.cli.main import main
from vlm.common.errors import ConfigError
from vlm.config.api import Config, effective, load_config

V0 = "model: {arch: mini_gpt4, model_type: pretrain_vicuna, llama_model: /llm}\n"
V2 = "model: {arch: minigpt_v2, model_type: pretrain, llama_model: /llm, freeze_qformer: true, ckpt: null}\n"
PROCESSORS = (
    "vis_processor: {train: {name: blip2_image_eval, image_size: 224}}, text_processor: {train: {name: blip_caption}}"
)
FILES = {
    "batch sizes of the run": V0 + "datasets: {cc_sbu_align: {}}\nrun: {batch_size_train: 12, batch_size_eval: 3}\n",
    "null as no checkpoint": "model: {arch: minigpt4, model_type: pretrain_llama2, llama_model: /llm, ckpt: null}\n",
    "processors": V0 + f"datasets: {{cc_sbu_align: {{{PROCESSORS}}}}}\nrun: {{task: image_text_pretrain}}\n",
    "all of a run": V2
    + (
        "run: {task: image_text_pretrain, lr_sched: linear_warmup_cosine_lr, init_lr: 1e-5, min_lr: 8e-5,"
        " warmup_lr: 1e-6, weight_decay: 0.05, max_epoch: 50, num_workers: 6, warmup_steps: 1000,"
        " iters_per_epoch: 1000, seed: 42, output_dir: out, amp: true, resume_ckpt_path: null, evaluate: false,"
        " train_splits: [train], device: cuda, world_size: 1, dist_url: 'env://', distributed: true,"
        " wandb_log: true, job_name: finetune}\n"
    ),
    "corpora of the first week": V2
    + (
        "datasets: {CaptionToPhrase: {sample_ratio: 80}, ObjectToPhrase: {sample_ratio: 80},"
        " grounded_detailed_image_caption: {sample_ratio: 80}, llava_conversation: {batch_size_train: 2}}\n"
    ),
    "misspelt": "model: {arch: minigpt_v2, model_type: pretrain, llama_model: /llm, wanda_log: false}\n",
    "nested build_info": V2
    + (
        "datasets: {gqa: {data_type: images, build_info: {annotations: {train: {url: [u], storage: [/gqa/train.json]}},"
        " images: {storage: /gqa/images}}}, invrefcocop: {build_info: {image_path: /coco, ann_path: /ref,"
        " dataset: invrefcoco+, splitBy: unc}}}\n"
    ),
    "defaults of a model": V0
    + ("preprocess: {vis_processor: {train: {name: blip2_image_train, image_size: 224}}}\nenv: {cache_root: /x}\n"),
    "evaluation of one benchmark": V2
    + (
        "run: {task: image_text_pretrain, name: evaluation, max_new_tokens: 20, batch_size: 10, eval_file_path: /refs,"
        " img_path: /coco, save_path: /out}\n"
    ),
    "LAVIS": V0
    + (
        "run: {num_ans_candidates: 5, max_len: 10, min_len: 1, num_beams: 5, inference_method: generate,"
        " prompt: 'Question: {} Short answer:', use_ocr: true, test_splits: [val]}\n"
    ),
}
BENCHMARKS = ("refcoco", "refcoco+", "refcocog", "okvqa", "vizwiz", "iconvqa", "gqa", "vsr", "hm", "textvqa")


def load(text: str, folder: Path, *options: str) -> Config:
    (folder / "cfg.yaml").write_text(text)
    return load_config(folder / "cfg.yaml", options, check="none")


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_accepted_and_survives_in_a_run_folder(name: str, tmp_path: Path) -> None:
    cfg = load(FILES[name], tmp_path)
    again = load_config(cfg.resolved, check="none")
    assert effective(again) == effective(cfg)


def test_the_batch_size_of_the_run_is_for_datasets_that_name_none(tmp_path: Path) -> None:
    sections = (
        "datasets: {cc_sbu_align: {build_info: {storage: /a}}, laion: {batch_size: 6, build_info: {storage: /b}}}\n"
    )
    sections += "valid_datasets: {cc_sbu_align: {build_info: {storage: /a}}}\n"
    cfg = load(V0 + sections + "run: {batch_size_train: 12, batch_size_eval: 3}\n", tmp_path)
    assert {name: entry.batch_size for name, entry in cfg.datasets.items()} == {"cc_sbu_align": 12, "laion": 6}
    assert cfg.valid_datasets["cc_sbu_align"].batch_size == 3
    assert load_config(cfg.resolved, check="none").datasets["cc_sbu_align"].batch_size == 12
    assert load(V0 + sections, tmp_path).datasets["cc_sbu_align"].batch_size == 1


def test_nested_paths_and_earlier_names_mean_what_they_meant(tmp_path: Path) -> None:
    cfg = load(FILES["nested build_info"], tmp_path, "datasets.gqa.build_info.images.storage=/other")
    gqa = cfg.datasets["gqa"].format.config
    assert (gqa.ann_path, gqa.image_path) == (["/gqa/train.json"], "/other")
    assert cfg.datasets["invrefcocop"].format.config.dataset == "refcoco+"
    paths = "CaptionToPhrase: {batch_size_train: 2, build_info: {ann_path: /a.json, image_path: /i}}"
    cfg = load(V2 + f"datasets: {{{paths}}}\n", tmp_path)
    assert cfg.datasets["CaptionToPhrase"].batch_size == 2


@pytest.mark.parametrize("name", BENCHMARKS)
def test_files_of_a_published_evaluation(name: str, tmp_path: Path) -> None:
    entry = f"{name}: {{eval_file_path: /a, img_path: /i, save_path: /s.json, max_new_tokens: 20, batch_size: 10}}"
    cfg = load(V2 + f"evaluation_datasets: {{{entry}}}\n", tmp_path)
    files = cfg.evaluation_files[name]
    assert (files.eval_file_path, files.img_path, files.max_new_tokens, files.batch_size) == ("/a", "/i", 20, 10)
    assert f"evaluation_datasets.{name}.save_path" in cfg.no_effect
    assert load_config(cfg.resolved, check="none").evaluation_files == cfg.evaluation_files
    with pytest.raises(ConfigError, match=rf"evaluation_datasets\.{name}\.img_pth".replace("+", r"\+")):
        load(V2 + f"evaluation_datasets: {{{entry.replace('img_path', 'img_pth')}}}\n", tmp_path)


def test_keys_without_effect_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = load(FILES["misspelt"], tmp_path, "run.world_size=2", "model.prompt=x")
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "model.prompt, model.wanda_log, run.world_size" in warnings[0]
    assert set(cfg.no_effect) == {"model.wanda_log", "run.world_size", "model.prompt"}
    own = "model: {template: plain, llm: {name: hf, config: {model_type: llama, hidden_size: 8, num_attention_heads: 2,"
    own += " num_hidden_layers: 1, intermediate_size: 8, vocab_size: 9}}, weights: [{format: random, into: llm}]}\n"
    (tmp_path / "own.yaml").write_text(own + "preprocess: {}\nrun: {dist_url: 'env://'}\n")
    assert main(["config", "check", str(tmp_path / "own.yaml")]) == 0
    assert "run.dist_url has no effect here: torchrun's" in capsys.readouterr().out


def test_another_image_size_of_a_processor_is_named_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = FILES["processors"].replace("image_size: 224", "image_size: 512")
    assert load(text, tmp_path).model.image.config.size == 224
    assert "image_size is 512, but the model's images have 224 pixels: 224 is used" in caplog.text
    with pytest.raises(ConfigError, match=r"train\.mean.*found"):
        load(text.replace("image_size: 512", "mean: [0.1, 0.1, 0.1]"), tmp_path)


def test_an_empty_llm_must_be_set_where_files_are_checked(tmp_path: Path) -> None:
    text = "model: {arch: minigpt_v2, model_type: pretrain, llama_model: ''}\n"
    load(text, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.llama_model.*must be set.*hf download"):
        load_config(tmp_path / "cfg.yaml", check="weights")
