"""The image world: deterministic, balanced, held-out pairs never named, files in the promised layouts."""

from __future__ import annotations

import json
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vlm.datasets.synthetic import export, language, render, scene


def test_same_key_same_image_and_other_seed_other_image():
    first, again, other = scene.scene_at(0, 5), scene.scene_at(0, 5), scene.scene_at(1, 5)
    assert first == again
    assert first != other
    assert np.array_equal(render.render(first), render.render(again))
    images = {render.render(scene.scene_at(seed, 5)).tobytes() for seed in range(5)}
    assert len(images) == 5


def test_splits_do_not_share_images():
    images = {render.render(scene.scene_at(0, 0, split=split)).tobytes() for split in scene.SPLITS}
    assert len(images) == len(scene.SPLITS)


def test_one_held_out_pair_for_each_kind():
    assert len(scene.HELD_OUT) == 12
    assert {kind for _, kind in scene.HELD_OUT} == set(scene.KINDS)
    assert {color for color, _ in scene.HELD_OUT} == set(scene.COLORS)


@pytest.mark.parametrize("split", ["captions", "dialogues", "seen"])
def test_held_out_pairs_are_never_shown_or_named(split):
    banned = [f"{color} {scene.noun(kind)}" for color, kind in scene.HELD_OUT]
    for index in range(400):
        shown = scene.scene_at(3, index, split=split)
        turns = language.dialogue(shown, np.random.default_rng(index), 6)
        text = " ".join([language.caption(shown), *(f"{t.text} {t.answer}" for t in turns)])
        assert not any(words in text for words in banned)
        assert not shown.has_unseen


def test_every_unseen_scene_has_a_held_out_pair():
    assert all(scene.scene_at(0, i, split="unseen").has_unseen for i in range(100))


def test_things_are_sorted_and_apart():
    for index in range(300):
        things = scene.scene_at(0, index, mix=(0.1, 0.2, 0.7)).things
        places = [thing.place for thing in things]
        assert places == sorted(set(places))
        assert len({(thing.color, thing.kind) for thing in things}) == len(things)


def test_image_shows_the_colour_at_the_place():
    thing = scene.Object(8, "red", "square", "large")
    pixels = np.asarray(render.render(scene.Scene((thing,), (0, 0, 0))))
    assert pixels.shape == (64, 64, 3)
    r, g, b = pixels[53, 53].astype(int)
    assert r > 150 > g and b < 120
    assert pixels[:30, :30].max() < 190


def test_caption_article_and_order():
    things = (
        scene.Object(0, "orange", "circle", "small"),
        scene.Object(4, "red", "A", "large"),
        scene.Object(8, "blue", "star", "small"),
    )
    assert language.caption(scene.Scene(things)) == (
        "a small orange circle in the top left, a large red letter A in the middle center "
        "and a small blue star in the bottom right"
    )
    assert language._bind_text("orange", "circle") == "Is there an orange circle?"


def test_note_has_fixed_slots():
    thing = scene.Object(5, "cyan", "T", "large")
    assert language.note(scene.Scene((thing,))) == ("one", "middle", "right", "large", "cyan", "T") + ("nothing",) * 10


def _truth(shown: scene.Scene, question: language.Question) -> str:
    """The answer found from the words of the question alone."""
    words = question.text.rstrip("?").split()
    last = words[-1]
    if question.type == "count":
        return scene.COUNTS[len(shown.things)]
    if question.type in ("shape", "letter"):
        (thing,) = [t for t in shown.things if t.color == last]
        return thing.kind
    if question.type == "exist":
        return "yes" if any(t.kind == last for t in shown.things) else "no"
    if question.type == "bind":
        color = next(word for word in words if word in scene.COLORS)
        return "yes" if any((t.color, t.kind) == (color, last) for t in shown.things) else "no"
    (thing,) = [t for t in shown.things if t.kind == last]
    return {"color": thing.color, "size": thing.size, "position": thing.where}[question.type]


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_answers_are_true_and_balanced(split):
    rows = export.balanced_questions(480, 1, split=split)
    answers: dict[str, Counter[str]] = {kind: Counter() for kind in language.QUESTION_TYPES}
    for shown, question in rows:
        assert _truth(shown, question) == question.answer
        assert question.unseen == (split == "unseen")
        answers[question.type][question.answer] += 1
    assert all(sum(counter.values()) == 60 for counter in answers.values())
    for counter in answers.values():
        assert max(counter.values()) - min(counter.values()) <= 3
    assert Counter(len(shown.things) for shown, _ in rows).keys() == {1, 2}


def test_unknown_question_type():
    with pytest.raises(KeyError, match="colour"):
        language.ask(scene.scene_at(0, 0), "colour", np.random.default_rng(0))


def test_caption_shards(tmp_path):
    shards = export.write_caption_shards(tmp_path, 5, 0, per_shard=3)
    assert [path.name for path in shards] == ["00000.tar", "00001.tar"]
    names = []
    for path in shards:
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert sorted(names) == sorted(f"{i:08d}.{ext}" for i in range(5) for ext in ("png", "json"))
    with tarfile.open(shards[0]) as tar:
        row = json.load(tar.extractfile("00000000.json"))
        assert Image.open(tar.extractfile("00000000.png")).size == (64, 64)
    assert row == {"caption": language.caption(scene.scene_at(0, 0))}
    again = export.write_caption_shards(tmp_path / "again", 5, 0, per_shard=3)
    assert [a.read_bytes() for a in shards] == [b.read_bytes() for b in again]


def test_dialogues_in_llava_layout(tmp_path):
    path = export.write_dialogues(tmp_path, 4, 0, turns=3)
    rows = json.loads(path.read_text())
    assert len(rows) == 4
    for row in rows:
        assert (tmp_path / "images" / row["image"]).exists()
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * 3
        assert row["conversations"][0]["value"].startswith("<image>\n")
        assert sum("<image>" in turn["value"] for turn in row["conversations"]) == 1


def test_evaluation_rows(tmp_path):
    path = export.write_questions(tmp_path, 16, 0, split="unseen", name="held_out")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 16
    assert rows[0].keys() == {"id", "image", "question", "answer", "type", "objects", "unseen_pair"}
    assert all((tmp_path / row["image"]).exists() and row["unseen_pair"] for row in rows)
