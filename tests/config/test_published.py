"""Published train and eval files of MiniGPT-4 are accepted unchanged, the names of April 2023 too."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm.config.api import Config, load_config
from vlm.config.run import NO_EFFECT, RunConfig
from vlm.config.schema import names_of

TRAIN = """
model:
  arch: {arch}
  model_type: {model_type}
  max_txt_len: 160
  end_sym: "###"
  prompt_path: "prompts/alignment.txt"
  prompt_template: '###Human: {{}} ###Assistant: '
  ckpt: '/path/to/checkpoint/'
  llama_model: /vicuna
datasets:
  cc_sbu_align:
    batch_size: 12
    vis_processor:
      train:
        name: "blip2_image_train"
        image_size: 224
    text_processor:
      train:
        name: "blip_caption"
    build_info:
      storage: /cc_sbu_align
run:
  task: image_text_pretrain
  runner: runner_base
  lr_sched: "linear_warmup_cosine_lr"
  init_lr: 3e-5
  min_lr: 1e-5
  warmup_lr: 1e-6
  weight_decay: 0.05
  beta2: 0.999
  lr_decay_rate: 0.9
  max_epoch: 5
  iters_per_epoch: 200
  num_workers: 4
  warmup_steps: 200
  accum_grad_iters: 1
  log_freq: 50
  seed: 42
  output_dir: "output/minigpt4_stage2_finetune"
  amp: True
  resume_ckpt_path: null
  evaluate: False
  train_splits: ["train"]
  valid_splits: []
  test_splits: []
  use_dist_eval_sampler: True
  device: "cuda"
  world_size: 1
  dist_url: "env://"
  distributed: True
  wandb_log: True
  job_name: minigpt4_finetune
"""
EVAL = """
model:
  arch: mini_gpt4
  model_type: pretrain_vicuna
  freeze_vit: True
  freeze_qformer: True
  max_txt_len: 160
  end_sym: "###"
  low_resource: True
  prompt_path: ""
  prompt_template: '###Human: {} ###Assistant: '
  ckpt: '/path/to/pretrained/ckpt/'
  llama_model: /vicuna
datasets:
  cc_sbu_align:
    vis_processor:
      train:
        name: "blip2_image_eval"
        image_size: 224
    text_processor:
      train:
        name: "blip_caption"
run:
  task: image_text_pretrain
"""
V2 = """
model:
  arch: minigpt_v2
  model_type: pretrain
  image_size: 448
  drop_path_rate: 0
  use_grad_checkpoint: True
  use_grad_checkpoint_llm: False
  vit_precision: "fp16"
  freeze_vit: True
  vit_model: "eva_clip_g"
  max_txt_len: 1024
  max_context_len: 3500
  end_sym: "</s>"
  prompt: ""
  prompt_template: '[INST] {} [/INST]'
  chat_template: True
  lora_r: 64
  lora_alpha: 16
  low_resource: False
  device_8bit: 0
  llama_model: /llama2
datasets:
  llava_conversation:
    batch_size: 2
    sample_ratio: 30
    vis_processor: {train: {name: blip2_image_train, image_size: 448}}
    text_processor: {train: {name: blip_caption}}
    build_info: {image_path: /coco, ann_path: /llava.json}
run: {task: image_text_pretrain, name: minigptv2_evaluation, save_path: /results}
"""


def load(text: str, tmp_path: Path) -> Config:
    (tmp_path / "cfg.yaml").write_text(text)
    return load_config(tmp_path / "cfg.yaml", check="none")


@pytest.mark.parametrize(
    ("arch", "model_type"),
    [("minigpt4", "pretrain_vicuna0"), ("mini_gpt4", "pretrain_vicuna"), ("minigpt4", "pretrain_llama2")],
)
def test_train_file(arch: str, model_type: str, tmp_path: Path) -> None:
    cfg = load(TRAIN.format(arch=arch, model_type=model_type), tmp_path)
    assert cfg.model.arch == "minigpt4"
    assert cfg.model.template.config.prompt_template == "###Human: {} ###Assistant: "
    assert cfg.run.init_lr == 3e-5
    assert cfg.run.wandb_log is True
    assert cfg.datasets["cc_sbu_align"].format.config.storage == "/cc_sbu_align"


def test_chat_file_needs_no_data(tmp_path: Path) -> None:
    cfg = load(EVAL, tmp_path)
    assert cfg.model.model_type == "pretrain_vicuna0"
    assert cfg.model.llm.config.quantize == "int8"
    assert cfg.datasets == {}


def test_v2_file(tmp_path: Path) -> None:
    cfg = load(V2, tmp_path)
    assert cfg.model.llm.config.lora.alpha == 16
    assert cfg.model.text.config.max_context_len == 3500
    assert cfg.model.template.config.chat_template is True
    assert cfg.datasets["llava_conversation"].format.config.image_pattern == "COCO_train2014_{id}.jpg"
    assert cfg.run.save_path == "/results"


def test_keys_without_effect_are_run_keys_with_a_reason() -> None:
    assert set(NO_EFFECT) <= set(names_of(RunConfig))
    assert all(NO_EFFECT.values())
