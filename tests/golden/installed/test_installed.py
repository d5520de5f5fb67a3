"""Golden: folders of supported architectures, loaded here and by the installed transformers.

Every module beside this one with ``CASES`` is tested: it builds tiny random models of one system. Each conversation is
given to transformers on its own and to this library in one batch of unequal lengths.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.installed.conftest import Pair
from vlm.common.registry import resolve
from vlm.inference.architectures.against import GREEDY, NEW_TOKENS, expanded, image_token_of
from vlm.inference.architectures.reference import PLAIN
from vlm.inference.architectures.source import architecture_of

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
SCORED = 4
"""Last positions of a prompt that the loss of the gradient test reads."""
ROUNDING = 1e-7
"""Gradients that are smaller than this share of the largest are rounding."""


def test_ids_are_those_of_its_processor(pair: Pair) -> None:
    token = image_token_of(pair.engine)
    for example, inputs in zip(pair.examples, pair.inputs, strict=True):
        assert expanded(pair.engine, example, token) == inputs["input_ids"][0].tolist()


def test_pixels_are_those_of_its_image_processor(pair: Pair) -> None:
    kind = architecture_of(pair.folder)
    for example, inputs in zip(pair.examples, pair.inputs, strict=True):
        theirs = kind.pixels(inputs)
        assert [tuple(medium.shape) for medium in example.media] == [tuple(medium.shape) for medium in theirs]
        for ours, expected in zip(example.media, theirs, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_visual_tokens_before_and_after_the_bridge(pair: Pair) -> None:
    for number in (0, 2):  # one and two images
        batch = pair.engine.batch([pair.examples[number]])
        seen: list[Any] = []
        hook = pair.engine.model.bridge[0].register_forward_pre_hook(
            lambda module, given, seen=seen: seen.append(given[0])
        )
        visual = pair.engine.model.encode(batch.pixels, batch.frames, batch.about)
        hook.remove()
        inputs = pair.inputs[number]
        theirs = pair.case.features(pair.reference.model, inputs)
        if len(seen) == 1:  # media of one shape, in order
            torch.testing.assert_close(real(seen[0]), theirs, **CLOSE)
        torch.testing.assert_close(real(visual), pair.case.bridged(pair.reference.model, inputs), **CLOSE)


def real(features: Any) -> Tensor:
    """``[t, d]``: tokens that are not padding."""
    return features.tokens.flatten(0, 2) if features.mask is None else features.tokens[features.mask]


@torch.no_grad()
def test_logits_in_a_batch_of_unequal_lengths(pair: Pair) -> None:
    for ours, theirs in zip(*pair.logits(), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
        assert theirs.abs().max() > 0.1


def test_greedy_answers(pair: Pair) -> None:
    ours = pair.engine.generate_ids(pair.conversations, GREEDY, stops=())
    for row, inputs in zip(ours, pair.inputs, strict=True):
        prompt = inputs["input_ids"].shape[1]
        written = pair.reference.model.generate(**inputs, max_new_tokens=NEW_TOKENS, **PLAIN)[0].tolist()
        assert row == written[prompt:]


def gradients(model: Any, loader: Any) -> dict[str, Tensor | None]:
    """By the names of the key map; where a format converts a tensor, what the conversion makes of its gradient."""
    found = {name: p.grad for name, p in model.named_parameters()}
    some = {name: p.detach().double() for name, p in model.named_parameters() if p.grad is not None}
    before = loader.divided(dict(some))
    after = loader.divided({name: value + found[name] for name, value in some.items()})
    changed = {name: (after[name] - before[name]).float() for name in after if before[name] is not some.get(name)}
    return found | changed


def test_a_chat_session_answers_the_same(pair: Pair) -> None:
    (asked,) = pair.conversations[0]
    session = pair.engine.conversation(generation=GREEDY)
    answer = session.chat(asked.text, image=[medium.source for medium in asked.media])
    assert answer == pair.engine.generate([pair.conversations[0]], GREEDY)[0]


def test_gradients_of_what_trains(pair: Pair) -> None:
    model, theirs = pair.engine.model, pair.reference.model
    torch.manual_seed(0)
    targets = torch.randint(0, 250, (len(pair.conversations), SCORED))
    for rows in pair.logits():
        loss = sum(F.cross_entropy(row[-SCORED:], target) for row, target in zip(rows, targets, strict=True))
        loss.backward()
    weights = pair.engine.config.model.weights[0]
    loader = resolve("checkpoint_format", weights.format)()
    table, expected = loader.key_map(model, ""), gradients(theirs, loader)
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    wanted = {name: expected[table.theirs(name)] for name in trained}
    largest = max(grad.abs().max() for grad in wanted.values() if grad is not None)
    assert largest > 0
    for name, grad in trained.items():
        if name in pair.case.unused:
            assert not any(g is not None and g.any() for g in (grad, wanted[name])), name
            continue
        size = wanted[name].abs().max()  # of a bias of keys it is zero but for rounding
        assert size > 0, name
        assert (grad - wanted[name]).abs().max() <= max(1e-4 * size, ROUNDING * largest), name
    model.zero_grad()
    theirs.zero_grad()
