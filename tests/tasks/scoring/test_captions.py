"""Caption metrics are equal to recorded values of pycocoevalcap, token by token and number by number."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from vlm.tasks.scoring.captions import Compared, rouge_l
from vlm.tasks.scoring.meteor import align, meteor, meteor_rows, normalized
from vlm.tasks.scoring.objects import singular
from vlm.tasks.scoring.ptb import tokenize
from vlm.tasks.scoring.statistics import Metric, interval, restored
from vlm.tasks.scoring.stem import stem

RECORDED = Path(__file__).with_name("recorded")


def recorded(name: str) -> dict:
    return json.loads((RECORDED / name).read_text(encoding="utf-8"))


@cache
def compared() -> Compared:
    images = recorded("captions.json")["images"]
    following = iter(tokenize([text for image in images for text in image["references"]]))
    references = [[next(following) for _ in image["references"]] for image in images]
    return Compared(tokenize([image["candidate"] for image in images]), references)


def test_every_recorded_text_has_the_tokens_of_the_java_tokenizer() -> None:
    data = recorded("ptb.json")
    found = [" ".join(tokens) for tokens in tokenize(data["texts"])]
    other = [(t, f, r) for t, f, r in zip(data["texts"], found, data["tokens"], strict=True) if f != r]
    assert len(data["texts"]) > 1200 and not other


@pytest.mark.parametrize(
    ("captions", "tokens"),
    [
        (["plan B.", "Then it rains."], ["plan b", "then it rains"]),
        (["plan B.", "then it rains."], ["plan b.", "then it rains"]),
        (["a\nb", "c\r\nd"], ["a b", "c d"]),
        (["", "...", "!"], ["", "", ""]),
    ],
)
def test_a_token_can_depend_on_the_next_caption_but_never_moves_to_it(captions: list[str], tokens: list[str]) -> None:
    assert [" ".join(found) for found in tokenize(captions)] == tokens


def test_bleu_cider_and_rouge_are_those_of_pycocoevalcap() -> None:
    values = recorded("captions.json")["values"]
    rows = compared().bleu()
    units = [str(k) for k in range(len(rows))]
    for order, value in enumerate(values["bleu"], start=1):
        assert Metric("b", units, rows, f"bleu_{order}").value() == pytest.approx(value, abs=1e-9)
    np.testing.assert_allclose(compared().cider(), values["cider_images"], atol=1e-9)
    np.testing.assert_allclose(compared().rouge(), values["rouge_l_images"], atol=1e-9)
    assert compared().cider().mean() == pytest.approx(values["cider"], abs=1e-9)


def test_meteor_of_exact_words_and_stems_is_that_of_the_jar() -> None:
    values = recorded("captions.json")["values"]
    rows = meteor_rows(compared().candidates, compared().references)
    assert meteor(rows) == pytest.approx(values["meteor_exact_stem"], abs=1e-9)
    singles = [meteor(rows[k : k + 1]) for k in range(len(rows))]
    np.testing.assert_allclose(singles, values["meteor_exact_stem_images"], atol=1e-9)
    assert abs(meteor(rows) - values["meteor"]) > 1e-4  # the jar's default, with synonyms, is another number


def test_rows_make_intervals_after_they_were_stored() -> None:
    rows = compared().bleu()
    metric = restored(json.loads(json.dumps(Metric("bleu_4", [str(k) for k in range(60)], rows, "bleu_4").stored())))
    low, high = interval([metric], draws=100)
    assert low < metric.value() < high


def test_one_image_alone_has_no_rare_words_and_images_without_words_score_zero() -> None:
    assert Compared([["a", "dog"]], [[["a", "dog"]]]).cider().tolist() == [0.0]
    empty = Compared([[], ["a"]], [[["a", "b"]], [[], ["a"]]])
    assert empty.cider().tolist() == [0.0, 0.0] and empty.bleu()[0].tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 0]
    assert rouge_l([], [[]]) == 1.0 and rouge_l(["a"], [["b"]]) == 0.0


def test_an_exact_match_is_preferred_to_one_by_stem_and_few_chunks_to_both() -> None:
    assert align(["dogs", "run"], ["dog", "dogs"]) == [(0, 1)]
    assert align(["a", "dog", "a", "cat"], ["a", "cat"]) == [(2, 0), (3, 1)]
    assert normalized(["it", "'s", "12-year-old", "at&t", "u.s.", "no."]) == [
        "it", "'", "s", "12", "year", "old", "at", "&", "t", "us", "no", ".",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "stemmed"),
    [
        ("skiing", "ski"),
        ("generously", "generous"),
        ("hopping", "hop"),
        ("cried", "cri"),
        ("tie", "tie"),
        ("'em", "em"),
    ],
)
def test_stems_are_those_of_porter_2(word: str, stemmed: str) -> None:
    assert stem(word) == stemmed


@pytest.mark.parametrize(
    ("word", "one"), [("buses", "bus"), ("women", "woman"), ("ponies", "pony"), ("glass", "glas"), ("geese", "goose")]
)
def test_the_singular_is_that_of_the_script(word: str, one: str) -> None:
    assert singular(word) == one
