"""The evaluation card of a standard benchmark: hashes, protocol, prompt, errors, warnings, commands, bars."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm.cli.main import main
from vlm.common.trust import state_root
from vlm.config.api import EvaluationFiles, load_config
from vlm.inference.engine import Engine
from vlm.pages.card import page
from vlm.runners.evaluate import digests
from vlm.runners.evaluate.card import dataset_facts
from vlm.runners.evaluate.card_facts import groups_of, warnings_of
from vlm.runners.evaluate.run import Asked, run_evaluation
from vlm.tasks.benchmarks.base import Prediction, Result, Score
from vlm.tasks.scoring.statistics import per_item

from ..inference.small import write_config

HOSTILE = 'Is there a <script>alert(1)</script> &amp; "dog"?'


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of POPE with six questions, one of which has no image, by a small model."""
    folder = tmp_path_factory.mktemp("card")
    for k, color in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (16, 16), color).save(folder / f"{k}.png")
    rows = [
        {"question_id": k, "image": f"{k % 3 if k < 5 else 9}.png", "text": HOSTILE, "label": "no" if k % 2 else "yes"}
        for k in range(6)
    ]
    (folder / "coco_pope_random.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    cfg = load_config(write_config(folder), ["run.max_bad_share=0.5"])
    cfg.evaluation_files = {"pope": EvaluationFiles(str(folder / "coco_pope_random.json"), str(folder))}
    asked = {"images": ("right", "none"), "output": folder / "out", "command": ["vlm", "eval", "a b.yaml"]}
    run_evaluation(cfg, engine=Engine.load(cfg, allow_random=True), **asked)
    return folder / "out"


def test_the_card_says_what_was_asked_and_how(out: Path) -> None:
    card = json.loads((out / "evaluation_card.json").read_text())
    pope = card["datasets"]["pope"]
    assert pope["protocol"]["name"] == "official" and "no" in pope["protocol"]["about"]
    assert pope["protocol"]["benchmark"] == "POPE" and len(pope["protocol"]["data"]) == 64
    assert pope["errors"]["count"] == 1 and pope["errors"]["first"][0]["id"] == "5"
    assert "9.png" in pope["errors"]["first"][0]["reason"]
    assert pope["scores"]["right"][0]["label"] == "f1" and len(pope["scores"]["right"][0]["interval"]) == 2
    assert HOSTILE.lower() in pope["prompt"]["text"].lower() and any(isinstance(k, str) for k in pope["prompt"]["ids"])
    assert pope["cost"]["questions"] == 12 and pope["cost"]["answer tokens"] > 0
    assert {"python", "torch", "transformers", "vlm", "device"} <= set(card["environment"])
    for weights in card["weights"]:
        assert weights["sha256"] == hashlib.sha256(Path(weights["file"]).read_bytes()).hexdigest()
    assert card["commands"]["made by"] == "vlm eval 'a b.yaml'"


def test_the_command_on_the_card_scores_the_answers_again(out: Path, capsys: pytest.CaptureFixture) -> None:
    card = json.loads((out / "evaluation_card.json").read_text())
    words = shlex.split(card["commands"]["score pope again"])
    assert words[0] == "vlm" and main([*words[1:], "--output", str(out / "again")]) == 0
    again = json.loads((out / "again" / "evaluation.json").read_text())["pope"]["right"]
    first = card["datasets"]["pope"]["results"]["right"]
    assert {k: again[k] for k in ("metrics", "intervals", "errors", "data")} == {
        k: first[k] for k in ("metrics", "intervals", "errors", "data")
    }


def test_the_page_escapes_and_needs_no_other_file(out: Path) -> None:
    page = (out / "evaluation_card.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; &amp;amp;" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and page.count('class="bar"') >= 10
    assert 'scope="row"' in page and "Errors of pope" in page and "protocol official" in page


def test_a_benchmark_that_others_judge_has_a_card_without_scores() -> None:
    dataset: dict[str, Any] = {
        "name": "x", "protocol": {"name": ""}, "asked": {"questions": 3}, "cost": {}, "warnings": [], "unread": 0,
        "errors": {"count": 0, "first": []}, "prompt": {}, "head": [""], "rows": [], "note": "", "examples": {},
        "unscored": "others judge", "controls": {}, "groups": [],
    }  # fmt: skip
    groups = {"date": "2026", "model": {"composition": "a/b"}, "weights": [], "commands": {}}
    text = page("mine", groups, [dataset])
    assert "others judge" in text and 'class="bar"' not in text and "<b>3</b>" in text


def test_options_that_only_the_benchmark_knows_are_left_out() -> None:
    @dataclass
    class Options:
        depth: int = 2

    results = {"right": Result({"count": 3}, [])}
    asked = Asked(Result, Options(), lambda engine: None, {"records": "tasks/mine.yaml"}, results=results)
    facts = dataset_facts(asked)
    assert (facts["records"], facts["questions"], facts["depth"]) == ("tasks/mine.yaml", 3, 2)
    assert "longest answer in tokens" not in facts


def scored(right: float, none: float, **scores: int) -> dict[str, Result]:
    found = {"right": Score("accuracy", right, 100, [right - 0.1, right + 0.1]), "none": Score("accuracy", none, 100)}
    said = [Prediction(str(k), "q", "a") for k in range(100)]
    return {control: Result(scores, said, [score]) for control, score in found.items()}


def test_a_model_that_does_not_look_is_warned_of() -> None:
    (warning,) = warnings_of(scored(0.6, 0.55))
    assert "without an image is 55.0%" in warning and "the model answers without looking" in warning
    assert warnings_of(scored(0.6, 0.4)) == []
    assert [w.split()[0] for w in warnings_of(scored(0.6, 0.4, errors=20, unread=4))] == ["20"]


def test_groups_have_intervals() -> None:
    metric = per_item("accuracy", list("abcd"), [1, 1, 0, 1], groups=["x", "x", "y", None])
    rows = [Score("x", 1.0, 2, group=True), Score("y", 0.0, 1, group=True)]
    found = groups_of(Result({}, [], rows, metrics=[metric]))
    assert [list(row.interval or ()) for row in found] == [[1.0, 1.0], [0.0, 0.0]]


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"abc")
    assert digests.file_digest(file) == hashlib.sha256(b"abc").hexdigest()
    monkeypatch.setattr(digests, "REMEMBERED", 1)
    monkeypatch.setenv("VLM_STATE", str(tmp_path / "state"))
    first = digests.file_digest(file)
    (note,) = (state_root() / "digests").iterdir()
    note.write_text("f" * 64)
    assert digests.file_digest(file) == "f" * 64, "not read again"
    note.write_text("damaged")
    assert digests.file_digest(file) == first
    file.write_bytes(b"abcd")
    assert digests.file_digest(file) == hashlib.sha256(b"abcd").hexdigest()
    monkeypatch.setenv("VLM_STATE", str(file / "no folder"))
    assert digests.file_digest(file) == hashlib.sha256(b"abcd").hexdigest()
    with pytest.raises(OSError, match="gone"):
        digests.file_digest(tmp_path / "gone")
