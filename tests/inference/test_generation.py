"""Options of an answer: the published presets, ranges, stop sequences, the repetition penalty."""

from __future__ import annotations

import pytest
import torch

from vlm.common.errors import UserError
from vlm.common.paths import SYSTEMS
from vlm.config.api import load_config
from vlm.config.tree import parse_file
from vlm.inference.generation import CHAT, EVALUATION, Generation, default_generation
from vlm.inference.stopping import StopCriteria, ends_with, score_rules, stop_sequences


def test_published_presets() -> None:
    assert (CHAT.max_new_tokens, CHAT.repetition_penalty, CHAT.top_p, CHAT.do_sample) == (300, 1.05, 0.9, True)
    assert (CHAT.num_beams, CHAT.temperature, CHAT.max_length, CHAT.length_penalty) == (1, 1.0, 2000, 1.0)
    assert (EVALUATION.max_new_tokens, EVALUATION.do_sample, EVALUATION.repetition_penalty) == (20, False, 1.0)


@pytest.mark.parametrize(
    "name, length, sampled, top_p, top_k, temperature, beams, run, penalty",
    [
        ("minigpt4/pretrain_vicuna0", 300, True, 0.9, 50, 1.0, 1, 0, 1.05),
        ("minigpt_v2/pretrain", 500, True, 0.9, 50, 0.6, 1, 0, 1.05),
        ("tiny/minigpt4", 80, False, 0.9, 50, 1.0, 1, 0, 1.0),
        ("visualcla/7b_v0_1", 512, True, 0.9, 40, 0.5, 1, 15, 1.1),
        ("mmgpt/open_flamingo_9b_lora", 512, True, 1.0, 20, 1.0, 3, 0, 1.0),
        ("lynx/finetune", 64, False, 0.9, 3, 1.0, 5, 2, 1.0),
    ],
)
def test_compositions_answer_as_published(
    name: str,
    length: int,
    sampled: bool,
    top_p: float,
    top_k: int,
    temperature: float,
    beams: int,
    run: int,
    penalty: float,
) -> None:
    arch, model_type = name.split("/")
    params = parse_file(SYSTEMS / f"{name}.yaml").data["params"]
    needed = {param: "/there" for param, said in params.items() if said["default"] == "???"}
    found = default_generation(load_config({"model": {"arch": arch, "model_type": model_type, **needed}}, check="none"))
    assert (found.max_new_tokens, found.do_sample, found.top_p, found.top_k) == (length, sampled, top_p, top_k)
    assert (found.temperature, found.num_beams, found.no_repeat_ngram_size) == (temperature, beams, run)
    assert found.repetition_penalty == penalty


def test_all_bad_values_are_named_together() -> None:
    with pytest.raises(UserError, match=r"top_p is 1\.5.*top_k is -1.*temperature is 0"):
        Generation(temperature=0, top_p=1.5, top_k=-1)
    with pytest.raises(UserError, match="unknown generation option 'beams'"):
        CHAT.replace(beams=3)


def test_stop_sequences_cover_both_spellings(engine) -> None:
    tokenizer = engine.processor.tokenizer
    stops = stop_sequences(tokenizer, ["###"])
    assert tuple(tokenizer.encode("###")) in stops  # as the first piece of a segment, or after a space
    written = tokenizer.encode("a boat.###")
    assert ends_with(written, stops)
    assert not ends_with(written[:-1], stops)


def test_penalty_counts_the_dummy_begin_token_but_not_the_prompt() -> None:
    penalty = score_rules(EVALUATION.replace(repetition_penalty=2.0), StopCriteria((2,), bos=1, pad=0))
    scores = torch.tensor([[4.0, 4.0, -4.0, 4.0]])
    none_yet = torch.zeros(1, 0, dtype=torch.long)
    assert penalty(none_yet, scores).tolist() == [[4.0, 2.0, -4.0, 4.0]]
    assert penalty(torch.tensor([[2, 2]]), scores).tolist() == [[4.0, 2.0, -8.0, 4.0]]


def test_no_run_of_tokens_twice_the_dummy_begin_token_included() -> None:
    scores = torch.zeros(2, 5)
    ends = StopCriteria((2,), bos=1, pad=0)
    pairs, single = (score_rules(EVALUATION.replace(no_repeat_ngram_size=n), ends) for n in (2, 1))
    banned = pairs(torch.tensor([[3, 2, 3], [4, 4, 1]]), scores).isinf()
    assert banned.nonzero().tolist() == [[0, 2], [1, 4]]  # 3 2 again; the dummy token's 4 again
    assert not pairs(torch.zeros(2, 0, dtype=torch.long), scores).isinf().any()
    assert single(torch.tensor([[3]]), scores[:1]).isinf().nonzero()[:, 1].tolist() == [1, 3]
    with pytest.raises(UserError, match="no_repeat_ngram_size is -1"):
        CHAT.replace(no_repeat_ngram_size=-1)
