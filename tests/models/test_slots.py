"""Rows that share the calls of a decoder: what each gives is what it gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from vlm.models.fusion.base import LLMInputs
from vlm.models.llm.hf import HFCausalLM
from vlm.models.llm.slots import SlotLayout, Slots

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
SHARED = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": {**SIZES, "num_key_value_heads": 2},
    "mistral": {**SHARED, "sliding_window": 6},
    "gemma2": {**SHARED, "sliding_window": 6},
    "gemma3_text": {**SHARED, "sliding_window": 6},
    "gpt_oss": {**SHARED, "sliding_window": 6, "num_local_experts": 4},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2},
    "opt": {**SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64},
}
LENGTHS = (20, 9, 13)
STEPS = (  # rows, and the new tokens of each
    ([0], [10]),
    ([2, 1], [5, 3]),
    ([0, 1, 2], [1, 1, 1]),
    ([0, 1, 2], [3, 1, 2]),
    ([1], [3]),
    ([0], [1]),
    ([0], [5]),
    ([2], [5]),
    ([1], [1]),
)


def build(family: str) -> HFCausalLM:
    torch.manual_seed(0)
    config = {"model_type": family, **FAMILIES[family]}
    return HFCausalLM(HFCausalLM.Config(config=config, dtype="fp32")).eval()


def prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 100, (length,), generator=generator) for length in LENGTHS]


def alone(llm: HFCausalLM, ids: torch.Tensor, blocks: torch.Tensor | None = None) -> torch.Tensor:
    segments = torch.ones(1, len(ids), dtype=torch.long)
    positions = torch.arange(len(ids))[None]
    return llm(LLMInputs(llm.embed(ids)[None], segments, positions, segments * -100, blocks=blocks))[0]


class Reader:
    """Reads prompts in pieces."""

    def __init__(self, llm: HFCausalLM, ids: Sequence[torch.Tensor]) -> None:
        self.llm, self.ids, self.slots = llm, ids, Slots()
        self.done = [0] * len(ids)
        self.found: list[list[torch.Tensor]] = [[] for _ in ids]

    def read(self, rows: list[int], counts: list[int], blocks: torch.Tensor | None = None) -> None:
        starts = [self.done[r] for r in rows]
        spans = [slice(s, s + c) for s, c in zip(starts, counts, strict=True)]
        self.slots.reserve(len(self.ids), max(span.stop for span in spans))
        embeds = torch.cat([self.llm.embed(self.ids[r][span]) for r, span in zip(rows, spans, strict=True)])
        positions = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        layout = SlotLayout(self.slots, rows, starts, counts, embeds.device, blocks=blocks)
        hidden = self.llm.lengthen(embeds, positions, None, layout)
        assert layout.calls == len(self.llm.layers())
        for row, part in zip(rows, hidden.split(counts), strict=True):
            self.found[row].append(part)
            self.done[row] += len(part)


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_several_rows_equal_each_row_alone(family: str) -> None:
    llm, ids = build(family), prompts()
    reader = Reader(llm, ids)
    for rows, counts in STEPS:
        reader.read(rows, counts)
    assert reader.done == list(LENGTHS)
    for parts, row in zip(reader.found, ids, strict=True):
        whole = alone(llm, row)
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)
        assert float((whole - whole.roll(1, 0)).abs().max()) > 0.1  # positions differ, or nothing was tested


@torch.inference_mode()
def test_tokens_of_a_block_see_one_another() -> None:
    llm, (row, *_) = build("llama"), prompts()
    blocks = torch.zeros(1, len(row), dtype=torch.long)
    blocks[0, 3:8] = 1
    reader = Reader(llm, [row])
    reader.read([0], [2])
    reader.read([0], [10], blocks[:, :12])
    reader.read([0], [8])
    torch.testing.assert_close(torch.cat(reader.found[0]), alone(llm, row, blocks), atol=1e-5, rtol=1e-5)
    assert float((alone(llm, row, blocks) - alone(llm, row)).abs().max()) > 1e-3


@torch.inference_mode()
def test_what_is_read_can_be_kept_and_put_back() -> None:
    llm, ids = build("qwen2"), prompts()
    first = Reader(llm, ids)
    first.read([0], [8])
    piece = first.slots.read(0, 0, 8)
    second = Reader(llm, ids)
    second.slots.reserve(3, 8)
    second.slots.write(1, 0, piece)
    second.ids = [ids[1], ids[0], ids[2]]
    second.done = [0, 8, 0]
    for reader, row in ((first, 0), (second, 1)):
        reader.read([row], [12])
    assert torch.equal(first.found[0][-1], second.found[1][-1])
