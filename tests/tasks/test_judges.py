"""The open scorer on answers made by hand, and the published tables of Open-VQA."""

from __future__ import annotations

import pytest

from vlm.common.errors import ConfigError
from vlm.tasks.judges import (
    alternatives,
    interval,
    intervals,
    judge_of,
    kind_of,
    open_match,
    polarity,
    stem,
    words,
)
from vlm.tasks.metrics import summarise

IMAGES = {"OCR": 53, "Counting": 37, "Reasoning": 31, "Place": 22, "Color": 30, "Spatial": 15, "Action": 20}
IMAGES |= {"Others": 94}
VIDEOS = {"Action(Y/N)": 108, "Others": 40}
PRINTED_IMAGES = {
    "Lynx": ([36, 25, 26, 17, 21, 9, 17, 79], 76.16),
    "InstructBLIP": ([41, 20, 26, 14, 23, 6, 18, 77], 74.50),
    "BLIP2": ([29, 15, 21, 12, 17, 8, 16, 67], 61.26),
    "MiniGPT-4": ([32, 13, 13, 17, 16, 9, 16, 63], 59.27),
    "mPLUG-owl": ([34, 8, 16, 16, 14, 9, 13, 62], 56.95),
    "Multimodal-GPT": ([19, 8, 21, 12, 8, 6, 12, 56], 47.02),
    "LLaVA": ([21, 8, 13, 11, 12, 4, 16, 49], 44.37),
    "Open-Flamingo-0": ([20, 5, 15, 18, 5, 7, 11, 53], 44.37),
    "Open-Flamingo-4": ([14, 6, 15, 17, 9, 7, 11, 51], 43.05),
}
PRINTED_VIDEOS = {
    "Lynx": ([69, 29], 66.22),
    "mPLUG-owl": ([65, 19], 56.76),
    "InstructBLIP": ([62, 21], 56.08),
    "MiniGPT-4": ([56, 18], 50.00),
}


def overall_of(right: list[int], sizes: dict[str, int]) -> float:
    """The share of right answers from the number of right ones in each class."""
    records = [{"type": c, "answer": ""} for c, n in sizes.items() for _ in range(n)]
    flags = [k < r for r, n in zip(right, sizes.values(), strict=True) for k in range(n)]
    return summarise(records, flags)["overall"]


@pytest.mark.parametrize("system", PRINTED_IMAGES)
def test_published_table_of_images_adds_up(system: str) -> None:
    right, overall = PRINTED_IMAGES[system]
    assert sum(IMAGES.values()) == 302
    assert round(100 * overall_of(right, IMAGES), 2) == overall


@pytest.mark.parametrize("system", PRINTED_VIDEOS)
def test_published_table_of_clips_adds_up(system: str) -> None:
    right, overall = PRINTED_VIDEOS[system]
    assert sum(VIDEOS.values()) == 148
    assert round(100 * overall_of(right, VIDEOS), 2) == overall


QUESTIONS = [
    # kind, question, reference, right answers, wrong answers
    ("yes/no", "Is the man skateboarding?", "yes", ["Yes", "yes, he is.", "The man is skateboarding"], ["No", "a dog"]),
    ("yes/no", "Is the cow tagged?", "no", ["no", "No, it isn't", "It is not tagged"], ["yes", "it has a tag", " "]),
    ("yes/no", "Is it raining?", "yes", ["It's true: yes"], ["no, yes", "it does not rain"]),
    ("count", "How many people are there?", "3", ["3", "three", "There are three people."], ["2", "4 or 3", "many"]),
    ("count", "how many cats greet each other?", "two", ["2", "two cats"], ["three", "a cat"]),
    ("count", "How many men are wearing hats?", "nobody", ["0", "none", "nobody"], ["one", "they do"]),
    ("colour", "What color is the bus?", "green and grey", ["gray and green", "Green and Grey."], ["green", "red"]),
    ("colour", "What color is the water?", "blue or green", ["blue", "The water is green."], ["red", "all of them"]),
    ("colour", "What color is it?", "white", ["white", "red and white"], ["red white and blue", "colorful"]),
    ("letter", "Which option?", "A", ["A", "a", "A.", "(A)", "A) a dog", "The answer is A.", "Option (a)", "A: a dog"],
     ["B", "a dog", "A dog", "An apple", "The answer is B", "I think so", "", "AB"]),
    ("letter", "Which option?", "(c)", ["C", "c)", "Answer: C"], ["a", "cat", "It's B"]),
    ("letter", "Which letter is on the shirt?", "I", ["I", "The letter I"], ["I do not know", "i'm not sure", "L"]),
    ("count", "What time is it?", "10", ["10", "10.", "It is 10"], ["1", "100", "10.5"]),
    ("count", "How much is it?", "3.5", ["3.5", "about 3.5 dollars"], ["3", "3.9", "5"]),
    ("count", "How many people?", "1,000", ["1000", "1,000 people"], ["1", "100"]),
    ("count", "How cold is it?", "-5", ["-5", "It is -5 degrees"], ["5", "-50"]),
    ("free", "What time is it?", "9:30", ["9:30", "It is 9:30."], ["9:45", "9", "30"]),
    ("free", "How much is left?", "1/2", ["1/2", "1/2 of it"], ["1", "2", "1/3"]),
    ("free", "Which language?", "C++", ["C++", "It is C++"], ["C", "C#"]),
    ("free", "Which sign is it?", "+", ["+", " + "], ["-", "plus minus", "?"]),
    ("free", "Which word?", "the", ["the", "The.", '"the"'], ["a", "cat", ""]),
    ("free", "What is on the table?", "nothing", ["nothing", "Nothing."], ["a cup"]),
    ("free", "Which word is it?", "it", ["It", "it."], ["is", "cat"]),
    ("free", "What does it say?", "红色", ["红色", "红色。"], ["蓝色"]),
    ("free", "What is in the image?", "platform or tunnel", ["a tunnel", "Platforms"], ["train", "no tunnel", "plat"]),
    ("free", "What animals are these?", "elephants", ["an elephant", "Two elephants walk"], ["giraffe"]),
    ("free", "What sport?", "skating", ["skate", "They are skating"], ["skiing"]),
    ("free", "What is he holding?", "video game controller", ["a video game controller"], ["a video game"]),
    (
        "free", "What is the title of this book?", "bible stories with songs and fingerplays",
        ["Bible Stories: with songs & fingerplays", "Bible stories with songs & fingers"], ["bible stories"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "question", "reference", "right", "wrong"), QUESTIONS)
def test_answers_made_by_hand(kind: str, question: str, reference: str, right: list[str], wrong: list[str]) -> None:
    assert kind_of(question, reference) == kind
    assert {a: open_match(question, a, reference) for a in right} == dict.fromkeys(right, True)
    assert {a: open_match(question, a, reference) for a in wrong} == dict.fromkeys(wrong, False)
    assert open_match(question, reference, reference)


def test_normalising() -> None:
    assert words("The TV’s two GREY boxes, a café") == ["tv's", "2", "gray", "boxes", "café"]
    assert alternatives("a or b/c") == ["a", "b", "c"]
    assert [stem(w) for w in ("boxes", "ponies", "running", "skates", "glass", "buses")] == [
        "box", "pony", "run", "skat", "glass", "bus",
    ]  # fmt: skip
    assert [polarity(t) for t in ("Yeah", "it isn't", "blue")] == [True, False, None]


def test_judges() -> None:
    assert judge_of("exact")("", " a ", "a") and not judge_of("exact")("", "A", "a")
    assert judge_of("open")("Which?", "A", "A") and not judge_of("open")("Which?", "B", "A")
    assert judge_of(f"{__name__}:never")("", "x", "x") and not judge_of(f"{__name__}:never")("", "x", "y")
    assert judge_of(f"{__name__}:always")("", "x", "y")
    for name in ("gpt", f"{__name__}:nothing", "no_such_module:f"):
        with pytest.raises(ConfigError):
            judge_of(name)


def never(question: str, answer: str, reference: str) -> bool:
    return False


def always(question: str, answer: str, reference: str) -> bool:
    return True


def test_intervals_cover_the_mean_and_shrink() -> None:
    few, many = interval([1, 0] * 10), interval([1, 0] * 1000)
    assert few is not None and many is not None
    assert few[0] < 0.5 < few[1] and few[1] - few[0] == pytest.approx(0.44, abs=0.06)
    assert many[1] - many[0] == pytest.approx(0.044, abs=0.006)
    assert interval([1.0] * 5) == [1.0, 1.0] and interval([]) is None
    assert interval([1, 0, 0]) == interval([1, 0, 0])
    found = intervals(["a", "b", None], [1, 0, 0])
    assert found["by_type"] == {"a": [1.0, 1.0], "b": [0.0, 0.0]} and found["overall"][1] < 1.01
