"""The shipped run files of Lynx on tiny weights: images, videos and text in one batch, then chat and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from vlm.cli.main import main
from vlm.common.errors import DataError
from vlm.config.api import Config, load_config
from vlm.config.schema import ConfigProblems
from vlm.runners.train.run import run_training

from ..golden.helpers_lynx import LynxCase
from ..runners.lynx_small import CASE, moving_square, sizes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """Records of three corpora: images and videos of three colours, and texts; ``build_info`` of each."""
    torch.set_num_threads(1)
    monkeypatch.chdir(ROOT)
    images, clips, texts = [], [], []
    for k, (name, level) in enumerate(COLORS.items()):
        Image.new("RGB", (40, 30), level).save(tmp_path / f"{name}.png")
        images.append({"question_id": k, "image": f"{name}.png", "question": "What color is it?", "answer": [name]})
        moving_square(tmp_path / f"video{k}.mp4", level)
        clips.append({"id": k, "video_id": k, "question": "What color moves?", "answer": name})
        texts.append({"instruction": f"Say {name}.", "input": "", "output": name})
    found = {}
    for corpus, rows in (("coco_vqa", images), ("msrvtt_qa", clips), ("mmgpt_alpaca_gpt4", texts)):
        (tmp_path / f"{corpus}.json").write_text(json.dumps(rows))
        found[corpus] = {"ann_path": str(tmp_path / f"{corpus}.json"), "image_path": str(tmp_path)}
    del found["mmgpt_alpaca_gpt4"]["image_path"]
    return found


def shipped(name: str, tmp_path: Path, corpora: dict[str, dict[str, str]], steps: int, **model: Any) -> Config:
    """A shipped run file with the tiny sizes and files, and only the datasets of ``corpora``."""
    case = LynxCase(CASE)
    text = yaml.safe_load((ROOT / "train_configs" / f"{name}.yaml").read_text())
    config = case.config
    small = {"image_res": config["vision"]["image_size"], "num_frames": config["video"]["num_frames"]}
    small |= {"bridge_depth": config["bridge"]["depth"], "num_bridge_tokens": config["bridge"]["num_latents"]}
    small |= {"LLM": str(case.file("llm")), "vit_path": str(case.file("vision"))}
    text["model"] |= {**small, "checkpoint": str(case.file("checkpoint")), **model}
    text["datasets"] = {k: text["datasets"][k] | {"batch_size": 6} for k in corpora}
    for corpus, info in corpora.items():
        text["datasets"][corpus]["build_info"] |= info
    text["run"] |= {"max_steps": steps, "iters_per_epoch": steps, "warmup_steps": 2, "device": "cpu", "amp": False}
    text["run"] |= {"init_lr": 3e-3, "min_lr": 3e-3, "num_workers": 0, "log_freq": 1, "trackers": ["jsonl"]}
    text["run"] |= {"report": False, "output_dir": str(tmp_path / "run"), "lr_sched": "constant"}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(text))
    return load_config(tmp_path / "train.yaml", sizes(), check="all")


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def answers(run: Path, tmp_path: Path, records: list[dict[str, Any]], *more: str) -> list[str]:
    """What ``vlm generate`` says with a run folder."""
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    asked = ["generate", str(run), "--data", str(tmp_path / "ask.jsonl"), "--media-root", str(tmp_path)]
    out = tmp_path / "said.jsonl"
    assert main([*asked, "--output", str(out), "--overwrite", "--device", "cpu", "--num-beams", "1", *more]) == 0
    return [json.loads(line)["text_output"] for line in out.read_text().splitlines()]


def test_images_clips_and_text_are_learned_in_one_run(
    tmp_path: Path, corpora: dict[str, dict[str, str]], capsys: pytest.CaptureFixture
) -> None:
    cfg = shipped("lynx_finetune", tmp_path, corpora, 60)
    assert cfg.run.mixing == "sample" and cfg.model.video.config.sampling == "segments"
    run_training(cfg)
    run = tmp_path / "run"
    seen = losses(run)
    assert sum(seen[-5:]) < 0.35 * sum(seen[:5]), seen
    prompt = ("--prompt", "{question} Give a short answer.")
    clips = [{"question": "What color moves?", "video": f"video{k}.mp4"} for k in range(3)]
    assert answers(run, tmp_path, clips, *prompt, "--media-field", "video") == list(COLORS)
    images = [{"question": "What color is it?", "image": f"{name}.png"} for name in COLORS]
    assert answers(run, tmp_path, images, *prompt) == list(COLORS)
    texts = [{"question": f"Say {name}."} for name in COLORS]
    assert answers(run, tmp_path, texts) == list(COLORS)
    capsys.readouterr()
    asked = ["chat", str(run), "--ask", "What color moves? Give a short answer.", "--device", "cpu", "--num-beams", "1"]
    assert main([*asked, "--video", str(tmp_path / "video2.mp4")]) == 0
    assert capsys.readouterr().out.strip() == "blue"


def test_first_stage_goes_on_at_another_resolution(tmp_path: Path, corpora: dict[str, dict[str, str]]) -> None:
    rows = [{"image": f"{name}.png", "caption": f"a {name} sheet", "image_id": k} for k, name in enumerate(COLORS)]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    info = {"ann_path": str(tmp_path / "captions.json"), "image_path": str(tmp_path), "where": {"image": "*"}}
    captions: dict[str, Any] = {"coco_caption": info}
    cfg = shipped("lynx_pretrain", tmp_path, captions, 25, image_res=28, checkpoint="")
    assert cfg.model.template.config.prompt_path.endswith("pools/short_caption.txt")
    run_training(cfg)
    first = losses(tmp_path / "run")
    assert sum(first[-5:]) < 0.8 * sum(first[:5]), first
    (tmp_path / "second").mkdir()
    ckpt = str(tmp_path / "run")
    run_training(shipped("lynx_pretrain", tmp_path / "second", captions, 3, image_res=56, checkpoint="", ckpt=ckpt))
    assert losses(tmp_path / "second" / "run")[0] < 0.8 * first[0]


def test_documented_options_of_the_second_stage_are_known() -> None:
    file = ROOT / "train_configs" / "lynx_pretrain.yaml"
    head = file.read_text().split("model:\n")[0].replace("\n#", " ")
    options = head.split("--options")[1].split("\n")[0].split("published:")[0].split()
    assert len(options) == 4
    with pytest.raises(ConfigProblems) as caught:
        load_config(file, options, check="none")
    assert all("must be set" in p.message for p in caught.value.problems)


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [("nothing", "video1.mp4: no video that"), ("empty", "video1.mp4: empty"), ("gone", "video1.mp4: no such file")],
)
def test_unreadable_clips_stop_a_run_with_their_name(
    tmp_path: Path, corpora: dict[str, dict[str, str]], damage: str, wanted: str
) -> None:
    clip = tmp_path / "video1.mp4"
    clip.write_bytes(b"nothing at all" * 9 if damage == "nothing" else b"")
    if damage == "gone":
        clip.unlink()
    cfg = shipped("lynx_finetune", tmp_path, {"msrvtt_qa": corpora["msrvtt_qa"]}, 3)
    with pytest.raises(DataError, match=wanted):
        run_training(cfg)


def test_clip_with_fewer_frames_than_asked_goes_round(tmp_path: Path, corpora: dict[str, dict[str, str]]) -> None:
    moving_square(tmp_path / "video1.mp4", (0, 255, 0), frames=2)
    run_training(shipped("lynx_finetune", tmp_path, {"msrvtt_qa": corpora["msrvtt_qa"]}, 2))
    assert len(losses(tmp_path / "run")) == 2
