"""VQA accuracy against recorded scores of the scripts, and each rule of its normaliser."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from vlm.tasks.scoring import vqa
from vlm.tasks.scoring.statistics import interval, per_item

RECORDED = json.loads((Path(__file__).parents[1] / "benchmarks/recorded/vqa.json").read_text(encoding="utf-8"))
ANSWERS = [row["answer"] for row in RECORDED["questions"]]
REFERENCES = [[text for text, count in row["references"] for _ in range(count)] for row in RECORDED["questions"]]
SCRIPTS = {
    vqa.official: RECORDED["official"],
    vqa.caseless: RECORDED["published"],
    vqa.evalai: RECORDED["textvqa"],
    vqa.vizwiz: RECORDED["vizwiz"],
    vqa.always: RECORDED["lmms"]["vqav2"],
}


@pytest.mark.parametrize("rule", SCRIPTS, ids=lambda rule: rule.__name__)
def test_every_rule_gives_the_scores_of_its_script(rule: vqa.Rule) -> None:
    found = vqa.accuracies(ANSWERS, REFERENCES, rule)
    assert [round(100 * value, 2) for value in found] == SCRIPTS[rule]["each"]
    assert round(100 * found.mean(), 2) == SCRIPTS[rule]["overall"]


def test_the_scripts_differ_on_these_questions() -> None:
    assert len({record["overall"] for record in SCRIPTS.values()}) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Ten dogs", "10 dogs"),
        ("None of an apple", "0 of apple"),
        ("hot-dog", "hot dog"),
        ("hot -dog", "hot dog"),
        ("hot - dog - stand", "hot dog stand"),
        ("tic-tac -toe", "tictac toe"),
        ("1,000", "1000"),
        ("1,000 a-b", "1000 ab"),
        ("3.50.", "3.50"),
        ("U.S.A.", "usa"),
        ("dont", "don't"),
        ("shouldn'tve", "shouldn't've"),
        ("Im", "im"),
        ("somebody'd", "somebodyd"),
        ("." * 33, "."),
        ("", ""),
    ],
)
def test_how_a_text_is_normalised(text: str, expected: str) -> None:
    assert vqa.normalised(text) == expected


def test_the_texts_of_the_challenge_are_tokenised_first() -> None:
    assert vqa.tokenised("What's 1,000, really?\n") == "what 's 1000 really"
    assert vqa.tokenised("Ten\tdogs") == "10 dogs"


def test_persons_who_agree_are_compared_to_the_letter() -> None:
    assert vqa.accuracies(["Two"], [["2"] * 10])[0] == 0
    assert vqa.accuracies(["Two"], [["2"] * 9 + ["3"]])[0] == 1
    assert vqa.accuracies([" yes\n"], [["yes"] * 10])[0] == 1


def test_an_answer_of_one_to_four_persons() -> None:
    found = [vqa.share((True,) * count + (False,) * (10 - count)) for count in range(5)]
    assert np.allclose(found, [0, 0.3, 0.6, 0.9, 1.0]) and vqa.share(()) == 0


def test_nobody_is_left_out_in_the_other_accuracy() -> None:
    assert [vqa.of_all("Cat", ["cat"] * n + ["dog"] * (10 - n)) for n in (0, 1, 3, 10)] == [0, 1 / 3, 1, 1]


def test_many_answers_take_little_time() -> None:
    rng = np.random.default_rng(0)
    words = [f"{a} {b}" for a in ("red", "The two", "blue-ish", "don't") for b in range(1000)]
    pools = rng.integers(0, len(words), (20_000, 3))
    references = [[words[pool[k % 3]] for k in range(10)] for pool in pools]
    started = time.process_time()
    values = vqa.accuracies([people[0] for people in references], references)
    bounds = interval([per_item("accuracy", range(len(values)), values)])
    assert time.process_time() - started < 5 and bounds is not None and bounds[0] <= values.mean() <= bounds[1]
