"""Values that are not numbers: one error, on every way to an answer, that names the part that computed them first."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable

import pytest
import torch

from vlm.common.errors import DataError, NotFiniteError
from vlm.common.types import Image, Message, Text
from vlm.inference.engine import Engine
from vlm.inference.streaming import join
from vlm.models.finite import locate
from vlm.processors.collate import collate
from vlm.testing import tiny_example, tiny_model

PARTS = {
    "model.vision": lambda model: model.vision,
    "model.llm (token embeddings)": lambda model: model.llm.model.get_input_embeddings(),
    "model.llm (layer 1)": lambda model: model.llm.layers()[1].mlp,
    "model.llm (head)": lambda model: model.llm.model.lm_head,
}
WAYS = {
    "greedy": lambda engine, asked: engine.generate([asked], do_sample=False),
    "sampled": lambda engine, asked: engine.generate([asked], seed=1),
    "beams": lambda engine, asked: engine.generate([asked], num_beams=2, do_sample=False),
    "stream": lambda engine, asked: join(engine.stream(asked, seed=1)),
    "conversation": lambda engine, asked: engine.conversation().chat("what?", seed=1),
    "awaited": lambda engine, asked: asyncio.run(engine.conversation().achat("what?", seed=1)),
    "rank": lambda engine, asked: engine.rank([asked], [["yes", "no"]]),
}


def broken(engine: Engine, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Engine:
    """A copy of the engine with the weights of a part changed."""
    model = copy.deepcopy(engine.model)
    for parameter in PARTS[part](model).parameters():
        parameter.data = change(parameter.data)
    return Engine(model, engine.processor, config=engine.config)


@pytest.mark.parametrize("part", PARTS)
def test_damaged_weights(engine: Engine, ask, part: str) -> None:
    bad = broken(engine, part, lambda value: value * float("nan"))
    with pytest.raises(NotFiniteError) as caught:
        bad.generate([ask("what is it?", "red")], do_sample=False)
    assert str(caught.value).startswith(f"{part} computes values that are not numbers (float32)")
    assert "of its weights hold NaN or infinity, first" in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_an_answer(engine: Engine, ask, way: str) -> None:
    bad = broken(engine, "model.llm (layer 1)", lambda value: value * float("inf"))
    with pytest.raises(NotFiniteError, match=r"^model\.llm \(layer 1\) computes"):
        WAYS[way](bad, ask("what is it?", "red"))


def test_finite_weights_that_overflow() -> None:
    model, batch = tiny_model(), collate([tiny_example(2, 3, 4, seed=1)], 0)
    for parameter in model.bridge[1].parameters():
        parameter.data = parameter.data.sign() * 3e38
    text = str(locate(model, batch))
    assert text.startswith("model.bridge.1 computes values that are not numbers (float32); its weights are finite")
    assert "bf16 or fp32" in text


def test_pixels_that_are_not_numbers(engine: Engine) -> None:
    size = engine.model.vision.image_size
    pixels = torch.full((3, size, size), float("nan"))
    asked = [Message("user", (Image(pixels), Text("what is it?")))]
    with pytest.raises(DataError, match="pixels that are not numbers"):
        engine.generate([asked])
    asked = [Message("user", (Image(torch.zeros_like(pixels)), Text("what is it?")))]
    example = engine.examples([asked])[0]
    example.media[0][:] = float("nan")
    with pytest.raises(NotFiniteError, match="an image has pixels that are not numbers"):
        engine.generate([example])


def test_nothing_is_found_where_nothing_is_wrong(engine: Engine, ask) -> None:
    assert locate(engine.model, engine.batch(engine.examples([ask("what is it?", "red")]))) is None
