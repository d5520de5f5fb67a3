"""What an engine remembers is of the weights that it has now; where a prompt may be divided."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.batching.prefixes import Cut, cuts_of, keys_of
from vlm.inference.engine import Engine
from vlm.models.lora import LoraOptions, inject_lora

from .batching_asking import GREEDY, in_time
from .batching_subjects import LONG, SUBJECTS, again, ask

QUESTION = ask(LONG + "What is in the image?", 1)


def with_lora(folder: Path) -> Engine:
    engine = SUBJECTS["llama"].make(folder)
    inject_lora(engine.model.llm.model, LoraOptions())
    with torch.no_grad():
        for name, parameter in engine.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    return again(engine, block=16)


def answered(engine: Engine) -> Answer:
    answer = engine.submit(QUESTION, GREEDY, Asking(logprobs=0))
    in_time(answer.result)
    return answer


def layers(engine: Engine) -> list[Any]:
    return [m for m in engine.model.modules() if isinstance(m, BaseTunerLayer)]


def loaded(engine: Engine) -> None:
    engine.model.load_state_dict({k: v * 1.01 for k, v in engine.model.state_dict().items()})


def replaced(engine: Engine) -> None:
    weight = engine.model.vision.lift.weight
    weight.data = weight.data * 2


def rescaled(engine: Engine) -> None:
    for layer in layers(engine):
        layer.scale_layer(0.5)


CHANGES: dict[str, Callable[[Engine], Any]] = {
    "a file is loaded": loaded,
    "a part of the vision encoder is replaced": replaced,
    "LoRA is merged": lambda engine: [layer.merge() for layer in layers(engine)],
    "LoRA is switched off": lambda engine: [layer.enable_adapters(False) for layer in layers(engine)],
    "LoRA counts half": rescaled,
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_taken_from_other_weights(change: str, tmp_path: Path) -> None:
    engine = with_lora(tmp_path)
    before = answered(engine)
    assert answered(engine).usage.cached > 0
    CHANGES[change](engine)
    after, wanted = answered(engine), answered(again(engine, block=16))
    assert after.usage.cached == 0
    assert after.ids == wanted.ids and after.logprobs == wanted.logprobs
    assert after.logprobs != before.logprobs
    assert engine.stats().feature_misses == 2
    assert answered(engine).usage.cached > 0


def prompt(media: list[int], blocks: list[int] | None = None) -> Any:
    size = len(media)
    return SimpleNamespace(
        mask=torch.ones(1, size),
        media=torch.tensor([media]),
        blocks=None if blocks is None else torch.tensor([blocks]),
        embeds=torch.arange(size * 2.0).view(1, size, 2),
        positions=torch.arange(size)[None],
        inserts=None,
    )


def test_what_ends_within_an_image_is_not_kept() -> None:
    media = [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 0, 0, 0, 0]
    cuts = cuts_of(prompt(media), 2)
    assert [cut.end for cut in cuts if cut.kept] == [2, 8, 10, 12]  # before, between and after the two images
    assert [cut.end for cut in cuts if not cut.kept] == [4, 6, 14]
    blocks = [1 if m else 0 for m in media]  # tokens of both images see one another
    assert cuts_of(prompt(media, blocks), 2) == [Cut(2, True), Cut(10, True), Cut(12, True), Cut(14, False)]


def test_a_prompt_that_is_not_kept_is_read_in_as_few_pieces_as_may_be() -> None:
    media = [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 0, 0, 0, 0]
    assert cuts_of(prompt(media), 99, keeps=False) == [Cut(14, False)]
    assert [cut.end for cut in cuts_of(prompt(media), 6, keeps=False)] == [6, 12, 14]
    blocks = [1 if m else 0 for m in media]
    assert [cut.end for cut in cuts_of(prompt(media, blocks), 6, keeps=False)] == [12, 14]


def test_the_key_of_a_prefix_is_of_all_that_precedes_it() -> None:
    base = prompt([0] * 8)
    cuts = cuts_of(base, 2)
    first = keys_of(base, cuts, "a")
    assert len(set(first)) == 3
    for name in ("embeds", "positions"):
        other = prompt([0] * 8)
        getattr(other, name)[0, 3] += 1
        assert [x == y for x, y in zip(keys_of(other, cuts, "a"), first, strict=True)] == [True, False, False]
    assert not {*keys_of(base, cuts, "b"), *keys_of(base, cuts, "")} & {*first}
