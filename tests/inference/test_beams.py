"""Beam search against trying every answer, its rules at the edges, and beam sampling."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlm.common.errors import NotFiniteError, UserError
from vlm.inference.beams import Hypotheses, beam_search
from vlm.inference.decoding import Prompt, StopCriteria, decode
from vlm.inference.generation import CHAT

VOCAB, END = 4, 3
ENDS = StopCriteria(eos=(END,), bos=1, pad=0)


class Tiny(nn.Module):
    """A language model over four tokens whose next token depends on all before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(VOCAB, 8)
        self.mix = nn.Linear(8, VOCAB)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, inputs_embeds, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False):
        weight = torch.arange(1, inputs_embeds.shape[1] + 1)[None, :, None].float().cos()
        return SimpleNamespace(logits=self.mix((inputs_embeds * weight).cumsum(1)) * 3)


@pytest.fixture
def llm() -> Tiny:
    return Tiny()


@pytest.fixture
def prompt(llm: Tiny) -> Prompt:
    with torch.no_grad():
        return Prompt(llm.table(torch.tensor([[1, 2], [2, 0]])), torch.ones(2, 2, dtype=torch.long))


def options(**changes):
    return CHAT.replace(do_sample=False, repetition_penalty=1.0, max_new_tokens=3, use_cache=False, **changes)


def total(llm: Tiny, embeds: torch.Tensor, ids: tuple[int, ...]) -> float:
    """Log probability of an answer."""
    whole = torch.cat([embeds, llm.table(torch.tensor([ids]))], 1)
    chances = llm(whole).logits[:, embeds.shape[1] - 1 : -1].log_softmax(-1)
    return chances[0, torch.arange(len(ids)), list(ids)].sum().item()


@torch.no_grad()
def best_of_all(llm: Tiny, embeds: torch.Tensor, penalty: float, prefix: int) -> list[int]:
    answers = [
        ids
        for size in (1, 2, 3)
        for ids in itertools.product(range(VOCAB), repeat=size)
        if END not in ids[:-1] and (ids[-1] == END or size == 3)
    ]

    def score(ids: tuple[int, ...]) -> float:
        return total(llm, embeds, ids) / (prefix + len(ids) - (ids[-1] == END)) ** penalty

    return list(max(answers, key=score))


@pytest.mark.parametrize("form", ["published", "prompt"])
@pytest.mark.parametrize("penalty", [1.0, 3.0, 0.0])
def test_enough_beams_find_the_best_answer(llm: Tiny, prompt: Prompt, penalty: float, form: str) -> None:
    generation = options(num_beams=64, length_penalty=penalty, length_penalty_form=form)
    found = beam_search(llm, prompt, generation, ENDS)
    prefix = 1 if form == "published" else 2
    assert found == [best_of_all(llm, prompt.embeds[r : r + 1], penalty, prefix) for r in range(2)]


def test_rows_do_not_depend_on_each_other(llm: Tiny, prompt: Prompt) -> None:
    generation = options(num_beams=2)
    both = decode(llm, prompt, generation, ENDS)
    alone = [decode(llm, Prompt(prompt.embeds[r : r + 1], prompt.mask[r : r + 1]), generation, ENDS)[0] for r in (0, 1)]
    assert both == alone


def test_stop_sequences_end_a_beam(llm: Tiny, prompt: Prompt) -> None:
    free = decode(llm, prompt, options(num_beams=2), StopCriteria((), 1, 0))
    stop = tuple(free[0][:2])
    stopped = decode(llm, prompt, options(num_beams=2, length_penalty=0.0), StopCriteria((), 1, 0, (stop,)))
    assert any(tuple(row[-2:]) == stop for row in stopped)
    assert all(stop not in itertools.pairwise(row[:-1]) for row in stopped)


def test_nearly_everything_forbidden(llm: Tiny, prompt: Prompt) -> None:
    """Fewer tokens are allowed than there are candidates."""
    ends = StopCriteria((END,), 1, 0, banned=(0, 1, END))
    for do_sample in (False, True):
        generation = options(num_beams=3, top_k=0, seed=1).replace(do_sample=do_sample)
        assert decode(llm, prompt, generation, ends) == [[2, 2, 2]] * 2


def test_sampling_repeats_with_a_seed_and_by_row(llm: Tiny, prompt: Prompt) -> None:
    generation = options(num_beams=2, seed=11).replace(do_sample=True)
    once = decode(llm, prompt, generation, ENDS)
    assert once == decode(llm, prompt, generation, ENDS)
    alone = decode(llm, Prompt(prompt.embeds[1:], prompt.mask[1:]), generation, ENDS)
    assert alone == once[1:]
    seeds = [decode(llm, prompt, generation.replace(seed=s), ENDS) for s in range(8)]
    assert any(other != seeds[0] for other in seeds)


def test_hypotheses_keep_the_best() -> None:
    row = Hypotheses(beams=2, penalty=-2.0, prefix=1)
    row.add([5, END], -1.0, 1)
    row.close(best=-0.1, length=2)
    assert not row.done
    row.add([6, END], -3.0, 0)
    row.add([7, END], -9.0, 3)
    assert [ids for _, ids in row.found] == [[5, END], [6, END]]
    assert row.found[0][0] == pytest.approx(-4.0)
    row.close(best=-0.1, length=9)
    assert row.done


def test_unknown_form() -> None:
    with pytest.raises(UserError, match="length_penalty_form is 'other', must be published or prompt or answer"):
        CHAT.replace(length_penalty_form="other")


@pytest.mark.parametrize("penalty", [-2.0, 0.0, 1.0, 3.0])
def test_form_answer_is_that_of_the_installed_transformers(penalty: float) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(int(penalty) + 5)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = LlamaForCausalLM(LlamaConfig(vocab_size=12, initializer_range=0.6, **sizes)).eval()
    embeds, mask = torch.randn(3, 4, 16), torch.ones(3, 4, dtype=torch.long)
    ends = StopCriteria(eos=(2,), bos=1, pad=0)
    for beams in (2, 4):
        wanted = small.generate(
            inputs_embeds=embeds, attention_mask=mask, num_beams=beams, length_penalty=penalty, max_new_tokens=6,
            do_sample=False, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        generation = options(num_beams=beams, length_penalty=penalty, length_penalty_form="answer", min_length=0)
        found = beam_search(small, Prompt(embeds, mask), generation.replace(max_new_tokens=6), ends)
        rows = [row[: row.index(2) + 1] if 2 in row else row for row in wanted.tolist()]
        assert found == rows


@pytest.mark.parametrize("temperature", [0.1, 0.3])
def test_a_low_temperature_samples_what_transformers_samples(temperature: float) -> None:
    """Each token's score is divided by the temperature once; long answers stay finite."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = LlamaForCausalLM(LlamaConfig(vocab_size=12, initializer_range=0.6, **sizes)).eval()
    embeds, mask = torch.randn(1, 4, 16), torch.ones(1, 4, dtype=torch.long)
    torch.manual_seed(0)
    wanted = small.generate(
        inputs_embeds=embeds, attention_mask=mask, num_beams=3, do_sample=True, temperature=temperature, top_k=5,
        top_p=0.95, max_new_tokens=100, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    generation = CHAT.replace(num_beams=3, temperature=temperature, top_k=5, top_p=0.95, repetition_penalty=1.0, seed=0)
    generation = generation.replace(max_new_tokens=100, length_penalty_form="answer")
    assert beam_search(small, Prompt(embeds, mask), generation, StopCriteria((), 1, 0)) == wanted.tolist()


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_ends_where_everything_is_forbidden(llm: Tiny, prompt: Prompt, beams: int, do_sample: bool) -> None:
    everything = StopCriteria((END,), 1, 0, banned=(0, 1, 2, END))
    generation = options(num_beams=beams, top_k=0, seed=1).replace(do_sample=do_sample)
    assert decode(llm, prompt, generation, everything) == [[], []]
    once = generation.replace(no_repeat_ngram_size=1)  # each token can be written once, then nothing is left
    found = decode(llm, prompt, once.replace(max_new_tokens=9), StopCriteria((), 3, 0))
    assert [sorted(row) for row in found] == [[0, 1, 2]] * 2


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers(llm: Tiny, prompt: Prompt, beams: int, value: float) -> None:
    llm.mix.bias.data[1] = value
    for do_sample in (False, True):
        with pytest.raises(NotFiniteError, match="logits are not numbers"):
            decode(llm, prompt, options(num_beams=beams).replace(do_sample=do_sample), ENDS)
