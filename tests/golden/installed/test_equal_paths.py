"""Published architectures: packed rows, batches, caches, beams and streams give what one sample alone gives."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from tests.golden.installed.conftest import Pair
from vlm.common.types import Batch, Example, Image, Message, Sample
from vlm.inference.architectures.against import GREEDY, image
from vlm.inference.architectures.source import architecture_of
from vlm.processors.collate import VisualTokens, collate, collate_rows

SAID = ((1, "what is it", "a dog"), (0, "why", "because of the sun"), (2, "compare both of them please", "no"))
"""Images, question and answer of each sample."""
GRADIENT = {"rtol": 1e-4, "atol": 1e-5}


def samples(pair: Pair) -> list[Example]:
    """Conversations of unequal lengths, with as many images as the architecture takes."""
    kind, rng = architecture_of(pair.folder), random.Random(5)
    result = []
    for number, (wanted, question, answer) in enumerate(SAID):
        count = max(wanted, kind.needs_image)
        images = [Image(image(rng, (40, 160))) for _ in range(min(count, 1) if kind.one_image else count)]
        messages = (Message("user", [*images, question]), Message("assistant", answer))
        result.append(pair.engine.processor.encode_train(Sample(messages, f"s{number}"), rng, augment=False))
    return result


def loss_and_gradients(model: Any, batches: list[Batch]) -> tuple[float, int, dict[str, Tensor]]:
    """Sums over all batches."""
    model.zero_grad()
    outputs = [model(batch) for batch in batches]
    sum(output.loss_sum for output in outputs).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return sum(o.loss_sum.item() for o in outputs), sum(o.num_tokens for o in outputs), found


def test_packed_rows_and_batches_are_single_samples(pair: Pair) -> None:
    model, rows = pair.engine.model, samples(pair)
    loss, count, gradients = loss_and_gradients(model, [collate([row], 0) for row in rows])
    assert count > 20 and gradients
    for batch in (collate_rows([rows], 0), collate_rows([rows[:2], rows[2:]], 0), collate(rows, 0)):
        other, same, found = loss_and_gradients(model, [batch])
        assert same == count
        assert abs(other - loss) < 1e-4 * abs(loss)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert_close(found[name], gradient, **GRADIENT, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_positions_are_counted_before_anything_is_encoded(pair: Pair) -> None:
    model, rows = pair.engine.model, samples(pair)
    counted = VisualTokens.of(model.visual_tokens, model.counters())
    fused = model.prepare(collate(rows, 0))
    assert [counted.fused_length(row) for row in rows] == (fused.segments > 0).sum(1).tolist()


def test_beams_in_a_batch_are_those_alone(pair: Pair) -> None:
    beams = GREEDY.replace(num_beams=3, max_new_tokens=8)
    together = pair.engine.generate_ids(pair.conversations, beams, stops=())
    assert together == [pair.engine.generate_ids([one], beams, stops=())[0] for one in pair.conversations]


def test_answers_with_features_from_the_cache(pair: Pair) -> None:
    pair.engine.features.clear()
    first = pair.engine.generate_ids(pair.conversations, GREEDY, stops=())
    assert len(pair.engine.features) > 0
    alone = [pair.engine.generate_ids([one], GREEDY, stops=())[0] for one in reversed(pair.conversations)]
    assert first == alone[::-1]


def test_a_stream_is_the_whole_answer(pair: Pair) -> None:
    said = "".join(pair.engine.stream(pair.conversations[0], GREEDY))
    assert said.strip() == pair.engine.generate([pair.conversations[0]], GREEDY)[0]
