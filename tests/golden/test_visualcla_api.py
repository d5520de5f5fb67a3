"""Golden: the recorded conversations through the functions that users of VisualCLA know, their faults gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from vlm.common.errors import DataError, PromptError, UserError, WeightsError
from vlm.common.types import Text
from vlm.inference.generation import CHAT
from vlm.systems.visualcla.api import (
    VisualCLA,
    chat,
    chat_in_stream,
    conversation,
    generation_of,
    get_model_and_tokenizer_and_processor,
)

from .helpers_visualcla import VisualCLACase

THREE = ("text_model", "vision_model", "lora_model")
GREEDY = {"max_new_tokens": 12}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden-root", default=None) or Path(__file__).parent
        folders = sorted(f.parent for f in Path(root, "visualcla").rglob("case.json"))
        metafunc.parametrize("case", folders, ids=[f.name for f in folders], indirect=True, scope="module")


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> VisualCLACase:
    return VisualCLACase(request.param)


def load(case: VisualCLACase, merged: bool = False, **options: Any) -> VisualCLA:
    names = {"visualcla_model": case.folder / "merged_model"} if merged else {n: case.folder / n for n in THREE}
    return get_model_and_tokenizer_and_processor(**names, default_device="cpu", **options)[0]


@pytest.fixture(scope="module")
def model(case: VisualCLACase) -> VisualCLA:
    return load(case)


@pytest.fixture
def picture(case: VisualCLACase) -> Path:
    return case.folder / "image.png"


@pytest.mark.parametrize("merged", [False, True])
def test_recorded_conversations(case: VisualCLACase, picture: Path, merged: bool) -> None:
    model = load(case, merged)
    for record in case.case["generations"]:
        history = list(record["history_before"])
        answer, after = chat(model, str(picture), record["text"], history, record["generation_config"])
        assert answer == record["response"], record["name"]
        assert after == record["history_after"]
        assert after is history  # appended in place, as published
        config = GenerationConfig(**record["generation_config"])
        pairs = list(chat_in_stream(model, picture, record["text"], record["history_before"], config))
        assert pairs[-1] == (answer, record["history_after"])  # the published stream lost its last token
        texts = [text for text, _ in pairs]
        assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:]))
        assert len(texts) > 1 or len(record["output_ids"]) < 4


def test_pictures_in_every_form(case: VisualCLACase, model: VisualCLA, picture: Path) -> None:
    pixels = model.image_processor(picture)[None]
    assert torch.allclose(pixels, case.tensor("preprocess.pixel_values"), atol=1e-6)
    answers = [
        chat(model, form, "描述图像。", None, GREEDY)[0]
        for form in (picture, str(picture), Image.open(picture), pixels, picture.read_bytes())
    ]
    assert len(set(answers)) == 1


def test_without_a_picture_the_prompt_has_no_picture(model: VisualCLA) -> None:
    _, history = chat(model, None, "桌子上放着什么？", generation_config=GREEDY)
    (example,) = model.examples([conversation(history[:1])])
    assert not example.media
    assert not {model.tokenizer.id_of(mark) for mark in ("<img>", "</img>", "<img_token>")} & set(example.ids)


def test_calls_without_history_share_nothing(model: VisualCLA, picture: Path) -> None:
    first, one = chat(model, picture, "描述图像。", generation_config=GREEDY)
    again, two = chat(model, picture, "描述图像。", generation_config=GREEDY)
    assert (first, one) == (again, two)
    assert one is not two and len(two) == 2


def test_two_pictures_and_marks_in_words(model: VisualCLA, picture: Path) -> None:
    """Marks that somebody types are words; several pictures are several blocks."""
    messages = conversation(
        [{"type": "instruction", "value": "<img> <image_placeholder> <s>", "first_instruction": 1}], picture
    )
    (example,) = model.examples([messages])
    assert len(example.media) == 1
    assert example.ids.count(model.tokenizer.id_of("<img>")) == 1
    assert example.ids.count(model.tokenizer.bos) == 1
    both = [type(messages[0])("user", (*messages[0].media, *messages[0].media, Text("?")))]
    assert len(model.generate([both], generation_of(model, GREEDY))[0]) > 0


def test_a_stream_that_is_given_up_leaves_the_history(model: VisualCLA, picture: Path) -> None:
    history: list[dict[str, Any]] = []
    stream = chat_in_stream(model, picture, "描述图像。", history, GREEDY)
    text, so_far = next(stream)
    stream.close()
    assert history == []
    assert so_far[-1] == {"type": "response", "value": text}


def test_options_of_an_answer(model: VisualCLA) -> None:
    usual = generation_of(model)
    assert (usual.max_new_tokens, usual.temperature, usual.no_repeat_ngram_size) == (512, 0.5, 15)
    assert generation_of(model, CHAT) is CHAT
    published = generation_of(model, GenerationConfig(do_sample=True, top_k=40, bos_token_id=1, max_new_tokens=9))
    assert (published.do_sample, published.top_k, published.top_p, published.max_new_tokens) == (True, 40, 1.0, 9)
    assert published.repetition_penalty == 1
    for given, said in (
        ({"num_return_sequences": 3}, "num_return_sequences must be 1"),
        ({"tail_free": 1.0}, "unknown generation option 'tail_free'"),
        ({"temperature": 0}, "temperature is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ):
        with pytest.raises(UserError, match=said):
            generation_of(model, given)


def test_histories_that_cannot_be_read(model: VisualCLA, picture: Path) -> None:
    for history, said in (
        ([{"type": "question", "value": "x"}], r"history\[0\] is"),
        (["text"], r"history\[0\] is 'text'"),
        ([{"type": "instruction", "value": "x"}, {"type": "response", "value": "y"}], "has the key first_instruction"),
    ):
        with pytest.raises(PromptError, match=said):
            chat(model, picture, "描述图像。", list(history), GREEDY)
    before: list[dict[str, Any]] = []
    with pytest.raises(DataError, match=r"absent\.png"):
        chat(model, "absent.png", "描述图像。", before, GREEDY)
    assert before == []  # nothing of a question that failed


def test_what_cannot_be_loaded(case: VisualCLACase, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not given: vision_model, lora_model"):
        get_model_and_tokenizer_and_processor(text_model=case.folder / "text_model")
    with pytest.raises(WeightsError, match=r"visualcla_model: no folder .*nowhere"):
        get_model_and_tokenizer_and_processor(visualcla_model=tmp_path / "nowhere")
    with pytest.raises(UserError, match="a model is on one device"):
        load(case, device_map={"text_model": 0, "vision_model": 1})
    with pytest.raises(UserError, match="GPU 97 was asked for, but this machine has"):
        get_model_and_tokenizer_and_processor(case.folder / "merged_model", default_device=97)


def test_moving(model: VisualCLA) -> None:
    assert model.to("cpu").eval() is model
    with pytest.raises(UserError, match="GPU 97"):
        model.to(97)
