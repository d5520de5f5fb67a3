"""Open-VQA from its corpora to numbers and card, on the tiny Lynx: images, videos, controls, seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from vlm.cli.main import main
from vlm.config.api import load_config
from vlm.runners.evaluate.run import run_evaluation

from ..golden.helpers_lynx import LynxCase
from .lynx_small import CASE, moving_square

CLASSES = ["Color", "Others", "Counting"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A YAML file with three questions about images and two about videos."""
    torch.set_num_threads(1)
    images, clips = [], []
    for k, color in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{k}.png")
        row = {"index": k + 1, "question": "What color is it?", "answer": [color], "class": CLASSES[k]}
        images.append({**row, "image": f"{k}.png"})
    for k, level in enumerate([(255, 0, 0), (0, 0, 255)]):
        moving_square(tmp_path / f"{k}.mp4", level)
        row = {"index": k + 1, "question": "Does it move?", "answer": ["yes"], "class": "Action(Y/N)"}
        clips.append({**row, "video": f"{k}.mp4"})
    for name, rows in (("images", images), ("videos", clips)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    sets = {
        f"open_vqa_{name}": {
            "batch_size": 2, "max_new_tokens": 6,
            "build_info": {"ann_path": str(tmp_path / f"{name}.jsonl"), "image_path": str(tmp_path)},
        }
        for name in ("images", "videos")
    }  # fmt: skip
    run = {"task": "open_vqa", "device": "cpu", "output_dir": str(tmp_path / "out"), "name": "small"}
    text = {"model": LynxCase(CASE).shipped().resolved["model"], "evaluation_datasets": sets, "run": run}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(text))
    return tmp_path / "eval.yaml"


def test_evaluation_with_controls_and_card(config: Path, capsys: pytest.CaptureFixture) -> None:
    asked = ["eval", str(config), "--images", "right,blank,wrong", "--judge", f"{__name__}:long_or_red"]
    assert main(asked) == 0
    out = config.parent / "out"
    numbers = json.loads((out / "small.json").read_text())
    assert sorted(numbers) == ["open_vqa_images", "open_vqa_videos"]
    assert sorted(numbers["open_vqa_videos"]) == ["blank", "right", "wrong"]
    about_images = numbers["open_vqa_images"]["right"]
    assert about_images["overall"] == pytest.approx(1 / 3) and about_images["by_type"]["Color"] == 1
    assert about_images["intervals"]["overall"] == [0.0, 1.0]
    assert "95 %:" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "small_answers.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 5
    said = {
        c: [r["answer"] for r in rows if r["image"] == c and "images" in r["dataset"]]
        for c in numbers["open_vqa_images"]
    }
    assert len(set(said["right"])) > 1 or said["right"] != said["blank"]
    assert len(set(said["blank"])) == 1
    page = (out / "small_card.html").read_text()
    for text in (
        "Action(Y/N)",
        "grey image",
        "that of another question",
        "lynx/finetune",
        "num_beams",
        "Wrong answers",
    ):
        assert text in page
    assert page.count("data:image/jpeg;base64,") >= 3 + 2 * 3 and "http://" not in page
    card = json.loads((out / "small_card.json").read_text())
    assert card["datasets"]["open_vqa_videos"]["asked"]["questions"] == 2
    assert card["datasets"]["open_vqa_images"]["results"]["blank"]["overall"] is not None
    prompt = card["datasets"]["open_vqa_videos"]["prompt"]
    assert prompt["text"].endswith("user: does it move?⏎\nbot:") and prompt["ids"][0] in prompt["text"]
    assert prompt["ids"][0].startswith("[video of ") and all(isinstance(k, int) for k in prompt["ids"][1:])
    assert (
        card["datasets"]["open_vqa_images"]["asked"]["judge"].endswith("long_or_red")
        and "top_k" not in card["settings"]
    )
    assert card["model"]["bridge"] == "frame_positions -> perceiver" and card["settings"]["length_penalty"] == -2.0


def long_or_red(question: str, answer: str, reference: str) -> bool:
    return reference == "red"


def test_several_seeds_are_several_runs(config: Path) -> None:
    cfg = load_config(config, ["model.num_beams=1"])
    found = run_evaluation(cfg, datasets=["open_vqa_images"], seeds=[0, 1])["open_vqa_images"]["right"]
    assert found["seeds"] == [0, 1] and len(found["runs"]) == 2
    lines = (config.parent / "out" / "small_answers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(r["seed"], r["id"]) for r in rows] == [(s, str(k)) for s in (0, 1) for k in (1, 2, 3)]
    assert rows[0]["answer"] != rows[3]["answer"]
    assert "sampled, averaged over the seeds 0, 1" in (config.parent / "out" / "small_card.html").read_text()


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (["--seeds", "0,x"], "--seeds: expected integers >= 0, got x"),
        (["--judge", "clever"], "unknown judge 'clever'"),
        (["--images", "upside"], "allowed: right, wrong, none, blank"),
        (["--dataset", "open_vqa"], "evaluation_datasets has no open_vqa"),
    ],
)
def test_faults(config: Path, capsys: pytest.CaptureFixture, more: list[str], wanted: str) -> None:
    assert main(["eval", str(config), *more]) == 2
    assert wanted in capsys.readouterr().err


def test_unreadable_video_is_marked(config: Path, capsys: pytest.CaptureFixture) -> None:
    (config.parent / "1.mp4").write_bytes(b"nothing" * 9)
    assert main(["eval", str(config), "--dataset", "open_vqa_videos"]) == 0
    assert "1.mp4: no video that" in capsys.readouterr().err
    lines = (config.parent / "out" / "small_answers.jsonl").read_text().splitlines()
    errors = [json.loads(line).get("error", "") for line in lines]
    assert [("1.mp4: no video" in error) for error in errors].count(True) == 1 and not list(
        (config.parent / "out").glob("*.part-*")
    )


@pytest.mark.heavy
def test_two_processes_write_one_result(config: Path) -> None:
    assert main(["eval", str(config)]) == 0
    out = config.parent / "out"
    alone = (out / "small_answers.jsonl").read_text()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "vlm.cli", "eval", str(config), "--output", str(out / "two")]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "two" / "small_answers.jsonl").read_text() == alone
    assert done.stdout.count("open_vqa_images, right image") == 1
