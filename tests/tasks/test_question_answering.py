"""Questions, controls and counting, with an engine that answers from the image's name."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Images

from vlm.common.errors import ConfigError, DataError, UserError
from vlm.common.types import Image, Message, Sample, Text, Video
from vlm.tasks.answers import Answer, AnswerParts, distinct, key_of
from vlm.tasks.benchmarks.base import Questions
from vlm.tasks.benchmarks.image_controls import Controlled, swap_images, with_images
from vlm.tasks.benchmarks.open_vqa import OpenVqa
from vlm.tasks.benchmarks.question_answering import QuestionAnswering, result_of

from .asked import Asked

ROWS = [
    {"id": "a", "image": "red", "answer": "red", "type": "color", "objects": 1, "unseen_pair": False},
    {"id": "b", "image": "blue", "answer": "blue", "type": "color", "objects": 2, "unseen_pair": True},
    {"id": "c", "image": "blue", "answer": "blue", "type": "color", "objects": 2, "unseen_pair": True},
    {"id": "d", "image": "green", "answer": "green", "type": "color", "objects": 1, "unseen_pair": False},
]


class Rows:
    def __init__(self, rows=ROWS):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def record(self, i):
        return self.rows[i]

    def __getitem__(self, i):
        row = self.rows[i]
        user = Message("user", (Image(row["image"]), Text("What color?")))
        return Sample((user, Message("assistant", (Text(row["answer"]),))), id=row["id"])


class Engine(Asked):
    """Says the name of the image it sees."""

    def __init__(self, **stated):
        self.calls, self.stated = [], stated

    def default_generation(self, base):
        return base.replace(**self.stated)

    def generate(self, conversations, generation, batch_size=16):
        self.calls.append((conversations, generation, batch_size))
        return [f" {c[-1].media[0].source}\n" if c[-1].media else "red" for c in conversations]


def options(**changes):
    return QuestionAnswering.Config(**changes)


def run(engine=None, dataset=None, **changes):
    dataset = Questions(Rows()) if dataset is None else dataset
    return QuestionAnswering().run(engine or Engine(), dataset, options(**changes))


@pytest.mark.parametrize("image, overall", [("right", 1.0), ("wrong", 0.0), ("none", 0.25)])
def test_controls(image, overall):
    found = run(dataset=Controlled(Rows(), image)).scores
    assert found["overall"] == overall
    assert found["majority"]["overall"] == 0.5 and found["majority"]["answers"] == {"color": "blue"}
    assert found["counts"]["unseen_pairs"] == 2


def test_controls_change_images_and_keep_records_and_answers():
    dataset = Controlled(Rows(), "wrong")
    assert [dataset.record(i)["id"] for i in range(len(dataset))] == ["a", "b", "c", "d"]
    assert [dataset[i].messages[1].text for i in range(4)] == [r["answer"] for r in ROWS]
    assert all(dataset[i].messages[0].media[0].source != ROWS[i]["image"] for i in range(4))


def test_formats_without_records_and_streams_are_datasets_too():
    class Stream:
        def records(self, seed):
            return iter(["red", "blue"])

        def decode(self, raw):
            return Sample((Message("user", (Image(raw), Text("?"))), Message("assistant", (Text(raw),))))

    found = run(dataset=Questions(Stream()))
    assert found.scores["overall"] == 1.0 and [p.id for p in found.predictions] == ["0", "1"]
    assert found.predictions[0].fields == {} and found.scores["by_type"] == {}
    with pytest.raises(DataError, match="int has neither __len__ and __getitem__ nor records and decode"):
        Questions(3)


def test_questions_go_out_as_the_composition_says():
    engine = Engine(num_beams=5, length_penalty=-2.0, max_new_tokens=64)
    run(engine, max_new_tokens=7)
    ((_, generation, _),) = engine.calls
    assert (generation.num_beams, generation.length_penalty, generation.max_new_tokens) == (5, -2.0, 7)
    assert not generation.do_sample and generation.repetition_penalty == 1.0


def test_questions_go_out_greedily_without_their_answers():
    engine = Engine()
    run(engine, max_new_tokens=7)
    generation = engine.calls[0][1]
    conversations = [c for asked, _, _ in engine.calls for c in asked]
    assert generation.max_new_tokens == 7
    assert not generation.do_sample and generation.num_beams == 1 and generation.repetition_penalty == 1.0
    assert [[m.role for m in c] for c in conversations] == [["user"]] * 4
    assert {c[0].text for c in conversations} == {"What color?"}


def test_single_answers_keep_order_and_fields():
    answered = run().predictions
    assert [(a.id, a.answer.strip(), a.reference, a.right) for a in answered] == [
        (r["id"], r["answer"], r["answer"], True) for r in ROWS
    ]
    assert answered[0].question == "What color?" and answered[1].fields["objects"] == 2


def test_each_process_answers_its_share(monkeypatch):
    shares: list[dict[str, Answer]] = []
    monkeypatch.setattr("vlm.common.dist.world_size", lambda: 2)
    monkeypatch.setattr("vlm.common.dist.gather_objects", lambda own: shares.append(own) or shares)
    engines = [Engine(), Engine()]
    for rank in (0, 1):
        monkeypatch.setattr("vlm.common.dist.rank", lambda rank=rank: rank)
        if rank == 0:
            with pytest.raises(KeyError):  # without the answers of the other process
                run(engines[0])
        else:
            assert [p.answer.strip() for p in run(engines[1]).predictions] == ["red", "blue", "blue", "green"]
    names = [{c[-1].media[0].source for asked, *_ in engine.calls for c in asked} for engine in engines]
    assert names == [{"red", "blue"}, {"blue", "green"}]


def test_a_question_that_cannot_be_asked_is_marked_and_not_scored():
    class Faulty(Rows):
        def __getitem__(self, i):
            if i == 1:
                raise DataError("rows.jsonl:2: not an object")
            return super().__getitem__(i)

    class Engine_(Engine):
        def generate(self, conversations, generation, batch_size=16):
            if any(c[-1].media[0].source == "green" for c in conversations):
                raise DataError("green: truncated")
            return super().generate(conversations, generation, batch_size)

    found = run(Engine_(), Questions(Faulty()))
    assert [(p.answer, p.error) for p in found.predictions] == [
        (" red\n", None), ("", "rows.jsonl:2: not an object"), (" blue\n", None), ("", "green: truncated"),
    ]  # fmt: skip
    assert (found.scores["overall"], found.scores["count"], found.scores["unusable"]) == (1.0, 2, 2)
    assert found.rows()[-1].label == "could not be asked"
    with pytest.raises(DataError, match=r"4 of 4 questions cannot be asked, allowed are 1.0%:\n  - green"):
        run(Engine_(), Questions(Rows([{**row, "image": "green"} for row in ROWS])))
    many = Rows([{**ROWS[0], "id": str(k), "image": "green" if k < 10 else "red"} for k in range(100)])
    with pytest.raises(DataError, match="10 of 100 questions"):
        run(Engine_(), Questions(many))
    assert run(Engine_(), Questions(many, max_bad_share=0.2)).scores["unusable"] == 10


def test_an_interrupted_evaluation_goes_on(tmp_path):
    class Stopping(Engine):
        def generate(self, conversations, generation, batch_size=16):
            if any(c[-1].media[0].source == "green" for c in conversations):
                raise KeyboardInterrupt
            return super().generate(conversations, generation, batch_size)

    with pytest.raises(KeyboardInterrupt):
        run(Stopping(), Questions(Rows(), AnswerParts(tmp_path / "a", "f")), batch_size=2)
    engine, parts = Engine(), AnswerParts(tmp_path / "a", "f")
    kept = [key for key in parts.done if "-" not in key]  # the second of two equal questions ends in -1
    mended = Rows([row for row in ROWS if row["id"] != "b"])
    assert run(engine, Questions(mended, parts), batch_size=2).scores["overall"] == 1.0
    assert "green" in [c[-1].media[0].source for asked, *_ in engine.calls for c in asked]
    assert len(engine.calls) == 3 - len(kept)
    parts.remove()
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.part-0").write_text('{"fingerprint": "other"}\n')
    with pytest.raises(UserError, match="another model"):
        AnswerParts(tmp_path / "a", "f")
    assert AnswerParts(tmp_path / "a", "f", replace_strange=True).done == {}
    for name, found in (("a.part-backup", None), ("a.part-7", "not a partial answer file")):  # files of others
        (tmp_path / name).write_text("mine")
        with pytest.raises(DataError, match=found) if found else nullcontext():
            AnswerParts(tmp_path / "a", "f", overwrite=True).remove()
        assert (tmp_path / name).read_text() == "mine"


def test_keys_follow_from_content():
    image = Images.new("RGB", (4, 4), "red")
    same, other = Images.new("RGB", (4, 4), "red"), Images.new("RGB", (4, 4), "blue")
    assert key_of([Image(image)]) == key_of([Image(same)]) != key_of([Image(other)])
    assert key_of(Image(b"a")) != key_of(Image(b"b")) and key_of(Text("a")) != key_of(Image("a"))
    assert key_of(Image(np.zeros((900, 900)))) != key_of(Image(np.eye(900)))  # whose printed forms are shortened
    assert key_of("\ud800") and distinct(["a", "b", "a"]) == ["a", "b", "a-1"]


def test_every_image_is_replaced_by_another_one():
    other = swap_images(["a", "b", "a", "c", "d", "e"])
    assert sorted(other) == sorted(other.values()) == ["a", "b", "c", "d", "e"]
    assert all(k != v for k, v in other.items())
    assert other == swap_images(["a", "b", "a", "c", "d", "e"]) != swap_images(["a", "b", "c", "d", "e"], seed=1)
    with pytest.raises(DataError, match="two different images"):
        swap_images(["a", "a"])


def test_text_stays_when_images_go():
    message = Message("user", (Image("a"), Text("x"), Image("b"), Text("y")))
    (bare,) = with_images([message], "none", {})
    assert bare.parts == (Text("x"), Text("y"))
    (swapped,) = with_images([message], "wrong", {"a": "b", "b": "a"})
    assert swapped.parts == (Image("b"), Text("x"), Image("a"), Text("y"))


def test_faults():
    with pytest.raises(ConfigError, match="allowed: right, wrong, none"):
        Controlled(Rows(), "upside down")
    with pytest.raises(DataError, match="no question"):
        run(dataset=Questions(Rows([])))


def test_questions_without_answers_are_asked_and_not_counted():
    class Open(Rows):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            return sample if i else Sample(sample.messages[:1], id="q")

    engine = Engine()
    found = run(engine, Questions(Open()))
    answered = found.predictions
    assert [len(c) for asked, *_ in engine.calls for c in asked] == [1] * 4
    assert [(a.id, a.answer.strip(), a.reference) for a in answered[:2]] == [("q", "red", ""), ("b", "blue", "blue")]
    assert (found.scores["overall"], found.scores["count"]) == (1.0, 3)
    assert result_of(answered[:1]).scores["overall"] is None and "nothing is scored" in result_of(answered[:1]).note


def test_grey_images_and_clips_as_control():
    message = Message("user", (Image("a"), Text("x"), Video("b")))
    (grey,) = with_images([message], "blank", {})
    first, _, clip = grey.parts
    assert isinstance(first, Image) and first.source.getpixel((3, 3)) == (128, 128, 128)
    assert isinstance(clip, Video) and len(clip.source) == 1 and len(clip.source[0].getcolors()) == 1
    frames, other = ["f"], ["g"]
    swapped = swap_images([frames, other])
    (clips,) = with_images([Message("user", (Video(frames),))], "wrong", swapped)
    assert clips.media[0].source == other


def test_judge_and_several_runs():
    chosen = OpenVqa.Config()
    assert chosen.max_new_tokens == 64
    result = OpenVqa().run(Sentences(), Questions(Rows()), chosen)
    assert [p.right for p in result.predictions] == [True] * 4
    assert result.card and run().card
    wrong = [replace(p, answer="pink", right=False) for p in result.predictions]
    found = result_of(result.predictions, wrong).scores
    assert found["overall"] == 0.5 and found["runs"] == [1.0, 0.0] and found["by_type"] == {"color": 0.5}
    assert found["intervals"]["overall"] == [0.5, 0.5]
    assert "runs" not in result.scores
    with pytest.raises(ConfigError, match="unknown judge 'opem'; did you mean 'open'"):
        options(judge="opem")


class Sentences(Engine):
    def generate(self, conversations, generation, batch_size=16):
        return [f"The color is {c[-1].media[0].source}." for c in conversations]
