"""What lmms-eval asks in our terms; lmms-eval itself is not needed for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.inference.small import write_config
from vlm.common.errors import ConfigError, DataError
from vlm.common.types import Image, Message, Text, Video
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.tasks.benchmarks.lmms import benchmark
from vlm.tasks.benchmarks.lmms.requests import generation_of, losses, messages_of

STAND_IN = SimpleNamespace(
    default_generation=lambda base: base, processor=SimpleNamespace(template=SimpleNamespace(stop=["###"]))
)
"""An engine as far as options of an answer go."""


def options(**given: object) -> Generation:
    return generation_of(given, STAND_IN)


def test_a_task_that_says_nothing_is_answered_greedily_and_neutrally() -> None:
    expected = Generation(do_sample=False, repetition_penalty=1.0, seed=0, max_new_tokens=1024, stop=("###",))
    assert options() == expected
    assert options(image_aspect_ratio="pad", until=None) == expected


def test_options_of_an_answer_mean_the_same() -> None:
    found = options(max_gen_toks=7, until=["\n\n", "Q:", ""], num_beams=3, repetition_penalty=1.2, min_new_tokens=2)
    assert (found.max_new_tokens, found.num_beams, found.repetition_penalty, found.min_length) == (7, 3, 1.2, 3)
    assert found.stop == ("###", "\n\n", "Q:")
    assert options(stop_sequences="\n").stop == ("###", "\n")


@pytest.mark.parametrize(
    "given",
    [{"temperature": 0}, {"temperature": 0.7, "do_sample": False}, {"do_sample": True, "top_p": 0}, {"top_p": 0.5}],
)
def test_greedy(given: dict[str, object]) -> None:
    assert not options(**given).do_sample


def test_sampled() -> None:
    found = options(temperature=0.2, top_p=0.9, seed=5)
    assert (found.do_sample, found.temperature, found.top_p, found.top_k, found.seed) == (True, 0.2, 0.9, 0, 5)
    assert options(do_sample=True, top_k=1).top_k == 1
    assert options(do_sample=True).temperature == 1.0


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"option of generation_kwargs.*temprature.*temperature"):
        options(temprature=0.5)


def test_messages_keep_the_order_of_their_parts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    content = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image", "url": "a.png"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": [{"type": "text", "text": "And?"}, {"type": "video", "url": "b.mp4"}]},
    ]
    assert messages_of(content, tmp_path) == [
        Message("system", "Be short."),
        Message("user", [Image(str(tmp_path / "a.png")), "What?"]),
        Message("assistant", "A cat."),
        Message("user", [Text("And?"), Video(str(tmp_path / "b.mp4"))]),
    ]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "audio", "url": "a.wav"}, "a part of type audio"),
        ({"type": "video", "url": "a.mp4", "start_time": 2.0}, "a video with start_time"),
        ({"type": "video", "url": {"video": "a.mp4", "video_start": 1}}, "video_start"),
    ],
)
def test_what_no_model_reads_is_an_error(part: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        messages_of([{"role": "user", "content": [part]}])


def test_no_message_is_an_error() -> None:
    with pytest.raises(DataError, match="no message"):
        messages_of([])


def test_losses_are_the_means_of_the_endings_tokens_and_a_faulty_question_stands_alone(tmp_path: Path) -> None:
    engine = Engine.load(write_config(tmp_path))
    asked = [
        [Message("user", "What color?")],
        [Message("user", [Image("missing.png"), "What?"])],
        [Message("user", "?")],
    ]
    written = engine.generate_ids([asked[0]], Generation(do_sample=False, repetition_penalty=1.0, max_new_tokens=3))
    text = engine.processor.tokenizer.decode(written[0][:3])
    found = losses(engine, asked, [["red", " red ", text], ["red"], ["a long answer"]])
    assert isinstance(found[1], DataError) and "missing.png" in str(found[1])
    assert not isinstance(found[0], DataError) and found[0][0] == found[0][1]
    count = len(engine.processor.encode_answer("red", end=False))
    (total,) = engine.log_likelihoods([asked[0]], [["red"]])[0]
    assert found[0][0][0] == pytest.approx(-total / count, rel=1e-4)
    assert [greedy for _, greedy in found[0]] == [
        False,
        False,
        engine.processor.encode_answer(text, end=False) == written[0][:3],
    ]


def test_without_the_package_one_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lmms-eval, which is not installed\n  fix: pip install .*\[lmms\]"):
        benchmark.Lmms().open("task.yaml", "", benchmark.Lmms.Config())
