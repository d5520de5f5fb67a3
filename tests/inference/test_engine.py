"""What must not change the answer: streaming, batching, caching, beams of one, and the order of questions."""

from __future__ import annotations

import logging
import threading

import pytest
import torch

from vlm.common.errors import PromptError, UserError
from vlm.common.types import Features, Message, Text
from vlm.inference.beams import beam_search
from vlm.inference.decoding import StopCriteria, decode
from vlm.inference.feature_cache import FeatureCache
from vlm.inference.generation import CHAT, EVALUATION, Generation
from vlm.inference.streaming import join

GREEDY = EVALUATION.replace(max_new_tokens=24)


@pytest.fixture
def questions(ask):
    return [
        ask("What is in the image?", "red"),
        ask("Is there a dog in the image? It is a photo of a street.", "blue"),
        ask("Compare them.", "green", "yellow"),
        ask("No image here."),
    ]


def test_batched_equals_single(engine, questions) -> None:
    together = engine.generate_ids(questions, GREEDY)
    assert together == [engine.generate_ids([q], GREEDY)[0] for q in questions]
    assert len({tuple(row) for row in together}) == len(questions)  # the questions do make a difference


def test_batched_equals_single_when_sampling(engine, questions) -> None:
    sampled = CHAT.replace(max_new_tokens=12, seed=3)
    assert engine.generate_ids(questions, sampled) == [engine.generate_ids([q], sampled)[0] for q in questions]


def test_batch_size_changes_nothing(engine, questions) -> None:
    assert engine.generate(questions, GREEDY, batch_size=3) == engine.generate(questions, GREEDY)


@pytest.mark.parametrize("seed", range(4))
def test_streamed_equals_whole(engine, questions, seed) -> None:
    options = CHAT.replace(max_new_tokens=40, seed=seed, temperature=1.5)
    pieces = 0
    for question in questions:
        deltas = list(engine.stream(question, options))
        assert join(deltas) == engine.generate([question], options)[0]
        pieces += len(deltas)
    assert pieces > 3 * len(questions)


def test_cached_equals_recomputed(engine, questions) -> None:
    assert engine.generate_ids(questions, GREEDY) == engine.generate_ids(questions, GREEDY.replace(use_cache=False))


def test_greedy_equals_transformers_own_generate(engine, questions) -> None:
    prompt = engine.prompt(questions, GREEDY)
    theirs = engine.model.llm.model.generate(
        inputs_embeds=prompt.embeds, attention_mask=prompt.mask, max_new_tokens=24, do_sample=False, pad_token_id=0
    )
    stops = engine.generate_ids(questions, GREEDY, stops=())
    assert [row.tolist()[: len(ours)] for row, ours in zip(theirs, stops, strict=True)] == stops


def test_one_beam_is_greedy(engine, questions) -> None:
    prompt = engine.prompt(questions, GREEDY)
    ends = StopCriteria(eos=(2,), bos=1, pad=0)
    greedy = decode(engine.model.llm.model, prompt, GREEDY, ends)
    assert beam_search(engine.model.llm.model, prompt, GREEDY, ends) == greedy


def test_beams_stop_each_row_and_repeat(engine, questions) -> None:
    beams = GREEDY.replace(num_beams=3, max_new_tokens=10)
    first = engine.generate(questions, beams)
    assert first == engine.generate(questions, beams)
    assert join(engine.stream(questions[0], beams)) == first[0]
    sampled = beams.replace(do_sample=True, seed=1)
    before = torch.get_rng_state()
    assert engine.generate(questions, sampled) == engine.generate(questions, sampled)
    assert torch.equal(before, torch.get_rng_state())


def test_seed_repeats_and_none_differs(engine, ask) -> None:
    question = ask("Tell me a story.", "red")
    once = CHAT.replace(max_new_tokens=30, seed=5)
    assert engine.generate([question], once) == engine.generate([question], once)
    assert engine.generate([question], once) != engine.generate([question], once.replace(seed=6))
    free = once.replace(seed=None)
    assert len({engine.generate([question], free)[0] for _ in range(4)}) > 1


def test_rows_stop_by_themselves(engine, questions) -> None:
    ids = engine.generate_ids(questions, GREEDY, stops=())
    stop = (ids[0][4],)
    stopped = engine.generate_ids(questions, GREEDY, stops=(stop,))
    for full, cut in zip(ids, stopped, strict=True):
        end = full.index(stop[0]) + 1 if stop[0] in full else len(full)
        assert cut == full[:end]
    assert len(stopped[0]) <= 5 < max(map(len, stopped))


def test_min_length_forbids_the_end(engine, ask) -> None:
    question = ask("What?", "red")
    first = engine.generate_ids([question], GREEDY, stops=())[0][0]
    ends = StopCriteria(eos=(first,), bos=1, pad=0)
    from vlm.inference.decoding import decode

    prompt = engine.prompt([question], GREEDY)
    llm = engine.model.llm.model
    assert decode(llm, prompt, GREEDY, ends) == [[first]]
    longer = decode(llm, prompt, GREEDY.replace(min_length=4), ends)[0]
    assert len(longer) > 3 and first not in longer[:3]


def test_stop_event_ends_the_stream(engine, ask) -> None:
    event, pieces = threading.Event(), []
    for delta in engine.stream(ask("Go on.", "red"), GREEDY.replace(max_new_tokens=60, min_length=60), event):
        pieces.append(delta)
        if len(pieces) == 3:
            event.set()
    assert 3 <= len(pieces) <= 5


def test_images_are_encoded_once(engine, ask) -> None:
    engine.features.clear()
    engine.model.vision.calls = 0
    engine.generate([ask("One.", "red"), ask("Two.", "red", "blue")], GREEDY)
    engine.generate([ask("Three.", "blue")], GREEDY)
    assert engine.model.vision.calls == 2
    assert len(engine.features) == 2


def talk(ask, turns: int) -> list[Message]:
    messages = ask("What is in the image?", "red")
    for number in range(turns):
        messages.append(Message("assistant", (Text(f"Answer number {number}, with some words to fill the turn."),)))
        messages.append(Message("user", (Text(f"Question number {number}?"),)))
    return messages


def test_long_talk_loses_old_turns_and_keeps_the_image(engine, ask, caplog) -> None:
    messages = talk(ask, 8)
    options = GREEDY.replace(max_length=250)
    assert engine.length(messages) > 250
    logger = logging.getLogger("vlm.inference.context")
    logger.addHandler(caplog.handler)  # not through the root: the command line turns propagation off
    prompt = engine.prompt([messages], options)
    logger.removeHandler(caplog.handler)
    assert "left out" in caplog.text
    assert prompt.embeds.shape[1] <= 250 - 24
    first_two_and_last = messages[:2] + messages[-1:]
    assert prompt.embeds.shape[1] >= engine.length(first_two_and_last)  # the turn with the image is still there
    begin = engine.prompt([first_two_and_last], options).embeds
    assert torch.equal(prompt.embeds[:, :40], begin[:, :40])


def test_question_longer_than_the_context_is_refused(engine, ask) -> None:
    with pytest.raises(PromptError, match=r"takes \d+ positions.*only 100 fit"):
        engine.generate([ask("word " * 150, "red")], GREEDY.replace(max_length=124))


def test_published_context_cuts_from_the_left(engine, ask) -> None:
    messages = talk(ask, 2)
    whole = engine.prompt([messages], GREEDY).embeds
    cut = engine.prompt([messages], GREEDY.replace(max_length=44, context="published")).embeds
    assert torch.equal(cut, whole[:, -20:])


def test_answer_stays_within_the_models_positions(engine, ask) -> None:
    long = ask("word " * 20, "red")
    room = 320 - engine.length(long)
    assert 160 <= room < 300
    options = Generation(do_sample=False, repetition_penalty=1.0, min_length=400)
    assert len(engine.generate_ids([long], options, stops=())[0]) == room


def test_rank_orders_by_loss_and_survives_uneven_candidates(engine, ask) -> None:
    asked = [ask("What colour?", "red"), ask("How many?", "blue")]
    candidates = [["red", "a very long answer about nothing", "blue"], ["two", "three"]]
    both = engine.rank(asked, candidates, normalise="mean")
    alone = [engine.rank([q], [c], normalise="mean")[0] for q, c in zip(asked, candidates, strict=True)]
    for ranked, single in zip(both, alone, strict=True):
        assert ranked.losses == pytest.approx(single.losses, abs=1e-5)
        assert list(ranked.losses) != sorted(ranked.losses) or ranked.order == list(range(len(ranked.losses)))
        assert ranked.losses[ranked.best] == min(ranked.losses)
    sums = engine.rank(asked, candidates, normalise="sum")[0].losses
    assert sums[1] > sums[0]


def test_ready_prompt_is_taken_as_it_is_and_refused_when_too_long(engine, image) -> None:
    prompt = engine.processor.encode_prompt("<Img><ImageHere></Img> boat", [image()])
    assert engine.generate([prompt], GREEDY) == engine.generate([prompt, prompt], GREEDY)[:1]
    with pytest.raises(PromptError, match="positions"):
        engine.generate([engine.processor.encode_prompt("word " * 200, [])], GREEDY)


def test_ranking_needs_a_candidate_for_every_conversation(engine, ask) -> None:
    with pytest.raises(UserError, match=r"1 conversation\(s\), candidates: \[0\]"):
        engine.rank([ask("What?")], [[]])


def test_only_the_last_images_stay_in_the_cache() -> None:
    seen: list[int] = []

    def encoder(pixels: torch.Tensor) -> Features:
        seen.append(len(pixels))
        return Features(pixels.flatten(2)[:, :, None, :2])

    cache = FeatureCache(limit=2 * 2 * 4)  # two images of one token of two float32 numbers
    images = [torch.full((1, 1, 3, 2, 2), float(i)) for i in range(3)]
    for i in (0, 1, 0, 2, 0, 1):
        assert cache.encode(images[i], encoder).tokens.unique().tolist() == [float(i)]
    assert seen == [1, 1, 1, 1]  # the second 0 was kept by its use, 1 had to be encoded again
    assert cache.encode(torch.cat([images[1], images[1], images[2]]), encoder).tokens.shape[0] == 3
    assert seen[4:] == [1] and len(cache) == 2


def test_cache_keeps_masks() -> None:
    mask = torch.tensor([[[True, False]]])
    cache = FeatureCache()
    for _ in range(2):
        kept = cache.encode(torch.zeros(1, 1, 3, 2, 2), lambda pixels: Features(torch.zeros(1, 1, 2, 4), mask))
        assert torch.equal(kept.mask, mask)
