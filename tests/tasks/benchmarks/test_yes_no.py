"""POPE, MME, VSR and Hateful Memes from files in their original layout; protocols equal recorded scripts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.inference.conftest import LLM, SIZES
from vlm.common.errors import DataError
from vlm.common.registry import resolve
from vlm.common.types import Text
from vlm.systems.minigpt4.template import Vicuna0
from vlm.tasks.benchmarks.base import Questions
from vlm.tasks.benchmarks.standard.base import StandardOptions
from vlm.tasks.benchmarks.standard.stored import score_file
from vlm.tasks.benchmarks.standard.yes_no import vsr as vsr_module
from vlm.tasks.benchmarks.standard.yes_no.mme import COGNITION, PERCEPTION, Mme
from vlm.tasks.benchmarks.standard.yes_no.pope import SETS, Pope
from vlm.tasks.scoring.statistics import interval
from vlm.testing import tiny_engine

from .answered import numbers, recorded, said, written


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is not the intervals."""
    monkeypatch.setattr("vlm.tasks.benchmarks.numbers.interval", partial(interval, draws=20))


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    for name in SETS:
        lines = [
            {"question_id": k, "image": f"{k // 6}.jpg", "text": "Is there a dog?", "label": label}
            for k, label in enumerate(recorded("pope")["labels"])
        ]
        written(tmp_path / f"coco_pope_{name}.json", lines)
    return tmp_path


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("protocol", ["official", "lmms"])
def test_pope_equals_both_scripts(pope: Path, name: str, protocol: str) -> None:
    known = recorded("pope")
    answers = {str(k): text for k, text in enumerate(known["answers"][name])}
    found = numbers("pope", pope, answers, split=name, protocol=protocol)
    assert found["metrics"] == known[protocol][name]


def test_pope_of_three_sets_is_a_mean_and_lmms_pools_them(pope: Path) -> None:
    known = recorded("pope")
    answers = {f"{name}/{k}": text for name in SETS for k, text in enumerate(known["answers"][name])}
    found = numbers("pope", pope, answers, split="all")
    for label in ("f1", "accuracy"):
        mean = sum(known["official"][name][label] for name in SETS) / 3
        assert found["metrics"][label] == pytest.approx(mean, abs=1e-12)
    f1 = {name: one["value"] for name, one in found["by_group"]["f1"].items()}
    assert f1 == {name: known["official"][name]["f1"] for name in SETS}
    assert numbers("pope", pope, answers, split="all", protocol="lmms")["metrics"] == known["lmms"]["all"]


def test_lmms_asks_pope_for_a_word_and_counts_what_it_cannot_read(pope: Path) -> None:
    opened = Pope.open(str(pope), "", StandardOptions(protocol="lmms", split="popular"))
    assert opened.prompts[0] == "Is there a dog?\nAnswer the question using a single word or phrase."
    texts = recorded("pope")["answers"]["random"]
    found = numbers("pope", pope, {str(k): text for k, text in enumerate(texts)}, protocol="lmms")
    assert found["unread"] == sum(text.lower().strip() not in ("yes", "no") for text in texts)


@pytest.fixture
def mme(tmp_path: Path) -> Path:
    """Three images per category; those of existence and scene in a folder of their own, as published."""
    from PIL import Image as Images

    for category in (*PERCEPTION, *COGNITION):
        apart = category in ("existence", "scene")
        folder = tmp_path / "mme" / category
        for k in range(3):
            texts = folder / "questions_answers_YN" if apart else folder
            images = folder / "images" if apart else folder
            for one in (texts, images):
                one.mkdir(parents=True, exist_ok=True)
            asked = "Is it so? Please answer yes or no."
            (texts / f"{k}.txt").write_text(f"{asked}\tYes\n{asked}\tNo\n")
            Images.new("RGB", (4, 4), (k * 40, 0, 0)).save(images / f"{k}.png")
    return tmp_path / "mme"


def mme_answers() -> dict[str, str]:
    answers = {}
    for category, image, truth, text in recorded("mme")["answers"]:
        answers[f"{category}/{image}/{1 if truth == 'Yes' else 2}"] = text
    return answers


@pytest.mark.parametrize("protocol", ["official", "lmms"])
def test_mme_equals_both_scripts(mme: Path, protocol: str) -> None:
    known, found = recorded("mme")[protocol], numbers("mme", mme, mme_answers(), protocol=protocol)
    for label in ("perception", "cognition"):
        assert found["metrics"][label] == pytest.approx(known[label], abs=1e-9)
    for category, value in known.get("categories", {}).items():
        label = "perception" if category in PERCEPTION else "cognition"
        assert found["by_group"][label][category]["value"] == pytest.approx(value, abs=1e-9)
    assert found["count"] == 84


def test_mme_pairs_stay_together(mme: Path) -> None:
    opened = Mme.open(str(mme), "", StandardOptions(limit=7, seed=1, protocol="lmms"))
    units = [item.fields["unit"] for item in opened.items]
    assert len(units) == 6 and all(units.count(unit) == 2 for unit in units)
    assert opened.prompts[0] == recorded("mme")["brief"]
    assert all(Path(item.media[0].source).is_file() for item in opened.items)
    answers = {item.id: "Yes" for item in opened.items}
    found = score_file(Mme, str(mme), "", [said(mme, answers)], StandardOptions(limit=7, seed=1))
    assert found.scores["metrics"]["accuracy"] == 0.5 and found.scores["metrics"]["accuracy+"] == 0.0
    metric = next(m for m in found.metrics if m.label == "accuracy")
    assert len(metric.units) == 3 and interval([metric]) == [0.5, 0.5]  # one of each pair is always right


def test_an_mme_answer_that_failed_leaves_its_image_out_of_accuracy_plus(mme: Path) -> None:
    answers = {k: "yes" if k.endswith("1") else "no" for k in mme_answers()}
    file = written(mme / "said.jsonl", [{"id": k, "answer": v} for k, v in answers.items()])
    assert score_file(Mme, str(mme), "", [str(file)], StandardOptions()).scores["metrics"]["perception"] == 2000
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0] |= {"answer": "", "error": "crashed"}
    written(file, lines)
    found = score_file(Mme, str(mme), "", [str(file)], StandardOptions())
    assert (found.scores["errors"], found.scores["metrics"]["perception"]) == (1, 2000)


def test_mme_files_of_another_kind_are_one_message(mme: Path) -> None:
    (mme / "OCR" / "1.txt").write_text("Is it?\tYes\n")
    with pytest.raises(DataError, match=r"OCR/1.txt: 1 questions, expected are two"):
        Mme.open(str(mme), "", StandardOptions())
    (mme / "OCR" / "1.txt").write_text("Is it? Yes\nIs it?\tNo\n")
    with pytest.raises(DataError, match=r"1.txt:1: 'Is it\? Yes'"):
        Mme.open(str(mme), "", StandardOptions())
    with pytest.raises(DataError, match="MME is a folder"):
        Mme.open(str(mme / "OCR" / "1.txt"), "", StandardOptions())


@pytest.mark.parametrize("name", ["vsr", "hm", "hateful_memes"])
def test_the_published_rules_of_minigpt_v2(tmp_path: Path, name: str) -> None:
    known = recorded("minigpt_v2")["vsr" if name == "vsr" else "hm"]
    labels = [{"true": 1, "false": 0}.get(label, label) for label in known["labels"]]
    lines = [
        {"id": k, "image": f"{k}.jpg", "img": f"img/{k}.png", "caption": "It is left.", "text": "look", "label": label}
        | {"relation": "left of"}
        for k, label in enumerate(labels)
    ]
    file = written(tmp_path / ("test.jsonl" if name == "vsr" else "dev.jsonl"), lines)
    answers = {str(k): text for k, text in enumerate(known["answers"])}
    found = numbers(name, file, answers)
    assert found["protocol"] == "published"
    assert found["metrics"]["accuracy"] * 100 == pytest.approx(known["published"], abs=1e-12)
    official = numbers(name, file, answers, protocol="official")
    assert official["metrics"]["accuracy"] > found["metrics"]["accuracy"]  # "True." and "Yes." count


def test_hateful_memes_reads_a_submission_with_probabilities(tmp_path: Path) -> None:
    known = recorded("auroc")
    lines = [{"id": k, "img": f"img/{k}.png", "text": "t", "label": v} for k, v in enumerate(known["labels"])]
    file = written(tmp_path / "dev.jsonl", lines)
    rows = "".join(f"{k},{p},{int(p >= 0.5)}\n" for k, p in enumerate(known["probabilities"]))
    (tmp_path / "sent.csv").write_text("id,proba,label\n" + rows)
    options = StandardOptions(protocol="official")
    found = score_file(resolve("benchmark", "hm"), str(file), "", [str(tmp_path / "sent.csv")], options)
    assert found.scores["metrics"]["auroc"] == pytest.approx(known["auroc"], abs=1e-12)
    assert found.scores["metrics"]["accuracy"] == known["accuracy"]
    said_words = {str(k): "Yes, it is." if p >= 0.5 else "No" for k, p in enumerate(known["probabilities"])}
    hard = numbers("hm", file, said_words, protocol="official")
    assert hard["metrics"]["auroc"] == pytest.approx(known["auroc_of_labels"], abs=1e-12)


def test_vsr_by_its_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vsr, name = resolve("benchmark", "vsr"), "cambridgeltl/vsr_zeroshot"
    lines = [{"image": f"{k}.jpg", "caption": "It is left.", "label": k % 2, "relation": "left of"} for k in range(4)]
    asked: list[str] = []
    monkeypatch.setattr(vsr_module, "from_hub", lambda path: asked.append(path) or lines)
    opened = vsr.open(name, str(tmp_path), StandardOptions())
    assert asked == ["hf://cambridgeltl/vsr_zeroshot?split=test"] and len(opened) == 4
    assert opened.items[1].media[0].source == str(tmp_path / "1.jpg")
    with pytest.raises(DataError, match="no images"):
        vsr.open(name, "", StandardOptions())
    monkeypatch.undo()
    with pytest.raises(DataError, match="download test.jsonl of cambridgeltl/of_nobody"):
        vsr.open("cambridgeltl/of_nobody", str(tmp_path), StandardOptions())


def test_faults_of_vsr_and_hateful_memes_are_one_message(tmp_path: Path) -> None:
    file = written(tmp_path / "test.jsonl", [{"image": "a.jpg", "caption": "c", "label": 2}])
    with pytest.raises(DataError, match="line 1: label 2"):
        resolve("benchmark", "vsr").open(str(file), "", StandardOptions())
    file = written(tmp_path / "dev.jsonl", [{"id": 1, "img": "a.png", "text": "t"}])
    with pytest.raises(DataError, match="line 1 has no label"):
        resolve("benchmark", "hm").open(str(file), "", StandardOptions())


def test_mme_through_an_engine_by_text_and_by_likelihood(mme: Path) -> None:
    engine = tiny_engine(LLM, Vicuna0(Vicuna0.Config()), **SIZES)
    for folder in mme.iterdir():
        if folder.name not in ("existence", "code_reasoning"):
            for file in folder.glob("**/*.txt"):
                file.unlink()
    counted = {}
    for choose in ("generate", "likelihood"):
        options = StandardOptions(choose=choose, max_new_tokens=4, batch_size=8)
        opened = Mme.open(str(mme), "", options)
        found = Mme().run(engine, Questions(opened), options)
        counted[choose] = found.scores["count"], found.scores["errors"]
        assert set(found.scores["by_group"]["perception"]) == {"existence"}
    assert {p.answer for p in found.predictions} <= {"yes", "no"} and found.scores["unread"] == 0
    assert counted == {"generate": (12, 0), "likelihood": (12, 0)}
    assert isinstance(opened[0].messages[0].parts[-1], Text)
