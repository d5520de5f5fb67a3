"""Log-probabilities of options: equal however they are batched, whatever carries the image, and shared by processes."""

from __future__ import annotations

import json
import math
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Images

from tests.equivalence.batching_subjects import SUBJECTS
from vlm.common import dist
from vlm.common.errors import DataError, PromptError, UserError
from vlm.common.types import IGNORE_INDEX, Image, Message, Sample, Text
from vlm.inference.engine import Engine
from vlm.inference.ranking import rows_of
from vlm.inference.remote.engine import RemoteEngine
from vlm.tasks.answers import AnswerParts
from vlm.tasks.benchmarks.base import Questions
from vlm.tasks.likelihood import likeliest

ENDINGS = [["A", "B", "C"], ["a red boat", "a red", "two dogs"], ["yes", "no"]]


def picture(number: int) -> Image:
    colours = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image(Images.fromarray(colours).resize((48, 48), Images.Resampling.NEAREST))


def asked() -> list[list[Message]]:
    """Questions of different length."""
    words = ["Which letter?", "What is in the image? It was taken on a rainy day.", "Is it red?"]
    return [[Message("user", (picture(k), Text(text)))] for k, text in enumerate(words)]


def log_likelihoods(
    engine: Engine, questions: list, endings: list, batch_size: int, end: bool = False
) -> list[list[float]]:
    """The engine's numbers, batch by batch."""
    parts = [slice(k, k + batch_size) for k in range(0, len(questions), batch_size)]
    return [sums for part in parts for sums in engine.log_likelihoods(questions[part], endings[part], end=end)]


def by_hand(engine: Engine, question: list[Message], text: str, end: bool) -> float:
    """One question with one ending in a batch of its own, by the logits of the whole forward pass."""
    (prompt,) = engine.examples([question])
    answer = engine.processor.encode_answer(text, end)
    whole = replace(prompt, ids=prompt.ids + answer, labels=[IGNORE_INDEX] * len(prompt.ids) + answer)
    with torch.no_grad():
        output = engine.model(engine.batch([whole]), return_logits=True)
    found = output.logits[0, :-1].log_softmax(-1)
    wanted = output.labels[0, 1:]
    return sum(float(found[k, i]) for k, i in enumerate(wanted.tolist()) if i != IGNORE_INDEX)


@pytest.mark.parametrize(
    ("name", "end"),
    [("llama", False), ("llama", True), ("OpenFlamingo", False), ("mamba", False)]
    + [pytest.param(name, False, marks=pytest.mark.heavy) for name in ("PaliGemma", "Qwen2-VL", "Lynx", "gpt2")],
)
def test_batched_is_single_is_the_forward_pass(name: str, end: bool, engines) -> None:
    engine = engines(name)
    together = log_likelihoods(engine, asked(), ENDINGS, 8, end=end)
    apart = log_likelihoods(engine, asked(), ENDINGS, 1, end=end)
    for question, texts, one, other in zip(asked(), ENDINGS, together, apart, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
        assert one == pytest.approx([by_hand(engine, question, text, end) for text in texts], abs=1e-4)
        assert len(set(one)) == len(one) and max(one) < 0
    assert end or together[1][1] > together[1][0]  # what begins with it is no likelier
    images = [[Message("user", (picture(k + 1), *m.parts[1:]))] for k, (m,) in enumerate(asked())]
    assert log_likelihoods(engine, images, ENDINGS, 8, end=end) != together


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    torch.set_num_threads(1)
    made: dict[str, Engine] = {}

    def get(name: str) -> Engine:
        if name not in made:
            made[name] = SUBJECTS[name].make(tmp_path_factory.mktemp("engine"))
        return made[name]

    return get


def test_options_of_one_token_share_a_row() -> None:
    rows = rows_of([[[5], [6], [7]], [[5, 6], [5, 6, 7], [8]]])
    assert [(r.prompt, r.ids, sorted(r.endings)) for r in rows] == [(0, [5], [0, 1, 2]), (1, [5, 6, 7], [0, 1, 2])]


def test_images_are_encoded_once(engines) -> None:
    engine = engines("llama")
    engine.forget()
    before = engine.model.vision.calls
    log_likelihoods(engine, asked(), ENDINGS, 8)
    assert engine.model.vision.calls - before == len(ENDINGS)


class Rows:
    """Questions as a dataset; a record may be one that cannot be read."""

    def __init__(self, questions):
        self.questions = questions

    def __len__(self):
        return len(self.questions)

    def __getitem__(self, index):
        if self.questions[index] is None:
            raise DataError(f"record {index} is damaged")
        return Sample(tuple(self.questions[index]), str(index))


def test_likeliest_names_the_best_and_marks_bad_records(engines, tmp_path) -> None:
    engine = engines("llama")
    missing = [Message("user", (Image(str(tmp_path / "none.png")), Text("What?")))]
    dataset = Questions(Rows([*asked(), missing, None]), max_bad_share=0.5)
    choices = [*ENDINGS, ["A", "B"], ["A", "B"]]
    names = [[f"option {k}" for k in range(len(own))] for own in choices]
    found = likeliest(engine, dataset, choices, 8, names=names)
    sums = log_likelihoods(engine, asked(), ENDINGS, 8)
    assert found[:3] == [f"option {max(range(len(s)), key=s.__getitem__)}" for s in sums]
    assert "none.png" in found[3].error and found[4].error == "record 4 is damaged"
    assert found == likeliest(engine, dataset, choices, 1, names=names)
    whole = likeliest(engine, Questions(Rows(asked())), ENDINGS, 8, rule="whole")
    ended = log_likelihoods(engine, asked(), ENDINGS, 8, end=True)
    assert whole == [texts[max(range(len(s)), key=s.__getitem__)] for texts, s in zip(ENDINGS, ended, strict=True)]
    published = likeliest(engine, Questions(Rows(asked())), ENDINGS, 8, rule="published")
    ranked = engine.rank(asked(), ENDINGS)
    assert published == [texts[r.best] for texts, r in zip(ENDINGS, ranked, strict=True)]
    with pytest.raises(DataError, match="1 of 1 questions cannot be asked"):
        likeliest(engine, Questions(Rows([missing])), [["A"]], 8)
    with pytest.raises(DataError, match="question 1 has no choices"):
        likeliest(engine, Questions(Rows(asked())), [["A"], [], ["B"]], 8)


def test_processes_share_the_questions_and_one_goes_on(engines, tmp_path, monkeypatch) -> None:
    engine, whole = engines("llama"), Questions(Rows(asked()))
    alone = likeliest(engine, whole, ENDINGS, 8)
    shares: list[object] = []
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "world_size", lambda: 2)
        monkeypatch.setattr(
            dist, "gather_objects", lambda own: shares.append(own) or [dict.fromkeys(range(3), alone[0])]
        )
        likeliest(engine, whole, ENDINGS, 8)
    assert [sorted(own) for own in shares] == [[0, 2], [1]]
    assert [{**shares[0], **shares[1]}[k] for k in range(3)] == alone
    monkeypatch.undo()
    parts = AnswerParts(tmp_path / "answers", "same")
    assert likeliest(engine, Questions(Rows(asked()), parts), ENDINGS, 2) == alone
    again = Questions(Rows(asked()), AnswerParts(tmp_path / "answers", "same"))
    monkeypatch.setattr(Engine, "log_likelihoods", None)  # nothing is left to ask
    assert likeliest(engine, again, ENDINGS, 2) == alone


def test_long_talk_loses_old_turns_and_a_long_question_is_refused(engines) -> None:
    engine = engines("llama")
    turn = [Message("user", (Text("word " * 60),)), Message("assistant", (Text("no"),))]
    talk = [*turn * 9, *asked()[0]]
    (found,) = log_likelihoods(engine, [talk], [["A", "B"]], 4)
    assert all(map(math.isfinite, found))
    with pytest.raises(PromptError, match="positions"):
        log_likelihoods(engine, [[Message("user", (Text("word " * 600),))]], [["A", "B"]], 4)
    with pytest.raises(UserError, match="cannot be ranked"):
        RemoteEngine.log_likelihoods(engine, [], [])


def _one_of_two(rank: int, address: str, folder: str) -> None:
    """A process of :func:`test_two_processes_equal_one`."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = address
    with dist.joined("cpu"):
        engine = SUBJECTS["llama"].make(Path(folder))
        best = likeliest(engine, Questions(Rows(asked())), ENDINGS, 2)
        Path(folder, f"{rank}.json").write_text(json.dumps(best))


@pytest.mark.heavy
def test_two_processes_equal_one(engines, tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = str(free.getsockname()[1])
    torch.multiprocessing.spawn(_one_of_two, (address, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second == likeliest(engines("llama"), Questions(Rows(asked())), ENDINGS, 2)
