"""The published evaluation YAML of MiniGPT-v2, on a tiny model and records in every layout that it names.

``LAYOUTS`` is the table: a further benchmark is one function that writes its files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from vlm.cli.main import main
from vlm.common.registry import names
from vlm.config.api import load_config

CASE = Path(__file__).parents[2] / "golden" / "minigpt4" / "open" / "v2_lora"
Entry = dict[str, str]

PUBLISHED = """
model:
  arch: minigpt_v2
  model_type: pretrain
  max_txt_len: 500
  end_sym: "</s>"
  low_resource: False
  prompt_template: '[INST] {} [/INST]'
  llama_model: ""
  ckpt: ""
  lora_r: 64
  lora_alpha: 16

datasets:
  cc_sbu_align:
    vis_processor:
      train:
        name: "blip2_image_eval"
        image_size: 448
    text_processor:
      train:
        name: "blip_caption"

evaluation_datasets:
"""
ENTRY = """
  {name}:
    eval_file_path: {eval_file_path}
    img_path: {img_path}
    max_new_tokens: 20
    batch_size: 10
"""
RUN = """
run:
  task: image_text_pretrain
  name: minigptv2_evaluation
  save_path: {save_path}
"""


def image(file: Path, color: str = "red") -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), color).save(file)
    return file.name


def dump(file: Path, data: Any, lines: bool = False) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(d) + "\n" for d in data) if lines else json.dumps(data))
    return file


def entry(records: Path, images: Path) -> Entry:
    return {"eval_file_path": str(records), "img_path": str(images)}


def referred(name: str, *splits: str) -> Callable[[Path], Entry]:
    def write(folder: Path) -> Entry:
        for k, split in enumerate(splits):
            stem = f"COCO_train2014_{k:012d}"
            image(folder / "train" / f"{stem}.jpg")
            record = {"img_id": f"{stem}_7", "bbox": [5.5, 6, 20, 30.25], "height": 48, "width": 64}
            phrases = [record | {"sents": text} for text in ("left one", "the one at the left")]
            dump(folder / name / f"{name}_{split}.json", phrases)
        return entry(folder, folder / "train")

    return write


def okvqa(folder: Path) -> Entry:
    questions, annotations = [], []
    for k in range(2):
        image(folder / "train" / f"{k:012d}.jpg")
        questions.append({"image_id": k, "question": "What is it?", "question_id": 10 + k})
        answers = [{"answer": "a dog", "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)]
        more = {"question_type": "what", "answer_type": "other", "multiple_choice_answer": "a dog"}
        annotations.append({"image_id": k, "question_id": 10 + k, "answers": answers, **more})
    dump(folder / "okvqa_test_split.json", questions)
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    dump(folder / "OpenEnded_mscoco_val2014_questions_clean.json", head | {"questions": questions})
    dump(folder / "mscoco_val2014_annotations_clean.json", head | {"annotations": annotations})
    return entry(folder, folder / "train")


def vizwiz(folder: Path) -> Entry:
    records = []
    for k in range(2):
        name = image(folder / "val" / f"VizWiz_val_{k:08d}.jpg")
        answers = [{"answer_confidence": "yes", "answer": "basil leaves"}] * 10
        records.append({"image": name, "question": "What is this?", "answers": answers})
        records[-1] |= {"answer_type": "other", "answerable": 1}
    return entry(dump(folder / "val.json", records), folder / "val")


def iconvqa(folder: Path) -> Entry:
    records = []
    for k in range(2):
        image(folder / "images" / f"{k}" / "image.png")
        records.append({"image_id": str(k), "question": "Which shape?", "choices": ["circle", "square"], "answer": k})
    return entry(dump(folder / "choose_text_val.json", records), folder / "images")


def gqa(folder: Path) -> Entry:
    records = [
        {"question_id": f"q{k}", "image": image(folder / "images" / f"{k}.jpg"), "question": "Is it red?"}
        | {"answer": "yes"}
        for k in range(2)
    ]
    return entry(dump(folder / "testdev_balanced_questions.json", records), folder / "images")


def vsr(folder: Path) -> Entry:
    records = [
        {"image": image(folder / "images" / f"{k:012d}.jpg"), "caption": "The cat is left of the dog.", "label": k}
        | {"relation": "left of", "subj": "cat", "obj": "dog", "image_link": "", "annotator_id": 1}
        for k in range(2)
    ]
    return entry(dump(folder / "test.jsonl", records, lines=True), folder / "images")


def hm(folder: Path) -> Entry:
    records = [
        {"id": 100 + k, "img": f"img/{image(folder / 'img' / f'{k}.png')}", "label": k, "text": "look at this"}
        for k in range(2)
    ]
    return entry(dump(folder / "dev.jsonl", records, lines=True), folder)


def textvqa(folder: Path) -> Entry:
    records = []
    for k in range(2):
        image(folder / "train_images" / f"img{k}.jpg")
        record = {
            "question_id": 30 + k,
            "image_id": f"img{k}",
            "question": "What does it say?",
            "answers": ["stop"] * 10,
        }
        records.append(record | {"set_name": "val", "image_width": 64, "image_height": 48, "image_classes": ["Sign"]})
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    file = dump(folder / "TextVQA_0.5.1_val.json", head | {"data": records})
    return entry(file, folder / "train_images")


LAYOUTS: dict[str, Callable[[Path], Entry]] = {
    "refcoco": referred("refcoco", "val", "testA", "testB"),
    "refcocog": referred("refcocog", "val", "test"),
    "refcoco+": referred("refcoco+", "val", "testA", "testB"),
    "gqa": gqa,
    "okvqa": okvqa,
    "vizwiz": vizwiz,
    "iconvqa": iconvqa,
    "vsr": vsr,
    "hm": hm,
    "textvqa": textvqa,
}
QUESTIONS = {"refcoco": 6, "refcocog": 4, "refcoco+": 6}
"""Those of the others are 2."""
PROTOCOLS = {"textvqa": "official"}
"""Those of the others are ``published``; the published scripts have no TextVQA."""


def sections(folder: Path, chosen: list[str]) -> tuple[str, str]:
    """The evaluation section with its files, and the run section."""
    entries = [ENTRY.format(name=name, **LAYOUTS[name](folder / name)) for name in chosen]
    return "".join(entries), RUN.format(save_path=folder / "results")


def model() -> dict[str, Any]:
    """MiniGPT-v2 with the sizes of the recorded case."""
    sizes = json.loads((CASE / "config.json").read_text())
    vision, lora = sizes["vision"], sizes["lora"]
    eva = {k: vision[k] for k in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")}
    options = {"r": lora["r"], "alpha": lora["alpha"], "dropout": lora["dropout"], "targets": lora["targets"]}
    return {
        "vision": {"name": "eva_vit", "image_size": vision["img_size"], "precision": "fp32", **eva},
        "bridge": [{"name": "concat"}, {"name": "linear"}],
        "fusion": {"name": "splice"},
        "llm": {"name": "hf", "path": str(CASE / "llm"), "dtype": "fp32", "lora": options},
        "template": "minigpt_v2",
        "image": {"size": vision["img_size"]},
        "weights": [
            {"format": "eva", "path": str(CASE / "eva_vit_g.pth"), "into": "vision"},
            {"format": "hf_llm", "path": str(CASE / "llm"), "into": "llm"},
            {"format": "trained", "path": str(CASE / "checkpoint.pth")},
        ],
    }


def test_the_published_file_is_read_as_it_is(tmp_path: Path) -> None:
    entries, run = sections(tmp_path, list(LAYOUTS))
    (tmp_path / "published.yaml").write_text(PUBLISHED + entries + run)
    cfg = load_config(tmp_path / "published.yaml", check="none")
    assert list(cfg.evaluation_files) == list(LAYOUTS) and not cfg.evaluation_datasets
    assert {files.max_new_tokens for files in cfg.evaluation_files.values()} == {20}
    assert cfg.run.save_path == str(tmp_path / "results")


def test_it_runs_on_every_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    known = names("benchmark")
    chosen = [name for name in LAYOUTS if name in known]
    entries, run = sections(tmp_path, chosen)
    composition = yaml.safe_dump({"model": model()}) + "evaluation_datasets:\n"
    (tmp_path / "tiny.yaml").write_text(composition + entries + run + "  device: cpu\n")
    assert main(["eval", str(tmp_path / "tiny.yaml")]) == 0
    results = tmp_path / "results"
    scores = json.loads((results / "minigptv2_evaluation.json").read_text())
    assert list(scores) == chosen
    printed = capsys.readouterr().out
    for name in chosen:
        found = scores[name]["right"]
        assert found["protocol"] == PROTOCOLS.get(name, "published"), name
        assert found["count"] + found["errors"] == QUESTIONS.get(name, 2), name
        assert f"{name}, right image:" in printed
    groups = scores["refcoco"]["right"]["by_group"]["accuracy"]
    assert {split: group["count"] for split, group in groups.items()} == {"val": 2, "testA": 2, "testB": 2}


def test_all_ten_are_there() -> None:
    assert not [name for name in LAYOUTS if name not in names("benchmark")]
