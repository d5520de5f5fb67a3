"""Blocks: tokens that see one another whichever comes first, against a mask that is written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from vlm.common.errors import ConfigError
from vlm.common.types import IGNORE_INDEX
from vlm.inference.decoding import StopCriteria, decode
from vlm.inference.generation import EVALUATION
from vlm.inference.incremental import Prompt
from vlm.models.fusion.base import LLMInputs
from vlm.models.fusion.splice import Splice
from vlm.models.llm.hf import HFCausalLM

VOCAB, WINDOW = 48, 5
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "head_dim": 8,
    "pad_token_id": 0,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
LENGTHS = (11, 7, 9)
BLOCKS = ([0, 1, 1, 1, 1, 1, 1, 1, 0, 2, 2], [1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0])
"""The first is longer than a window; the last sample has none."""


def built(family: str, **options: Any) -> HFCausalLM:
    torch.manual_seed(0)
    config = {"model_type": family, **SIZES, **FAMILIES.get(family, {})}
    return HFCausalLM(HFCausalLM.Config(config=config, dtype="fp32", **options)).float().eval()


def rows(layout: list[list[int]]) -> LLMInputs:
    """The samples by their numbers, several to a row; the last four positions of each are supervised."""
    ids = [torch.randint(3, VOCAB, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]

    def padded(parts: list[torch.Tensor]) -> torch.Tensor:
        return nn.utils.rnn.pad_sequence(parts, batch_first=True)

    def joined(values: Any) -> torch.Tensor:
        return padded([torch.cat([torch.as_tensor(values(i, k)) for k, i in enumerate(row)]) for row in layout])

    labels = [torch.cat([torch.full((n - 4,), IGNORE_INDEX), x[-4:]]) for n, x in zip(LENGTHS, ids, strict=True)]
    segments = joined(lambda i, k: torch.full((LENGTHS[i],), k + 1))
    made = LLMInputs(
        torch.randn(VOCAB, 16, generator=torch.Generator().manual_seed(1))[joined(lambda i, k: ids[i])],
        segments,
        joined(lambda i, k: torch.arange(LENGTHS[i])),
        joined(lambda i, k: labels[i]).where(segments > 0, IGNORE_INDEX),
        max(map(len, layout)) > 1,
        blocks=joined(lambda i, k: BLOCKS[i]),
    )
    made.inputs_embeds.requires_grad_()
    return made


def written_out(llm: HFCausalLM, inputs: LLMInputs) -> torch.Tensor:
    """Logits of transformers' own plain attention with a mask ``[b, 1, L, L]`` per kind of layer."""
    theirs = (
        AutoModelForCausalLM.from_config(copy.deepcopy(llm.model.config), attn_implementation="eager").float().eval()
    )
    theirs.load_state_dict(llm.model.state_dict())
    length = inputs.segments.shape[1]
    near = torch.arange(length)[:, None] - torch.arange(length) < WINDOW
    same = (inputs.blocks[:, :, None] == inputs.blocks[:, None, :]) & (inputs.blocks > 0)[:, :, None]
    seen = inputs.visible() & (inputs.segments > 0)[:, None, None, :]
    seen |= torch.eye(length, dtype=torch.bool)
    masks = {"full_attention": seen, "sliding_attention": seen & (near | same[:, None])}
    added = {name: torch.zeros(mask.shape).masked_fill(~mask, torch.finfo().min) for name, mask in masks.items()}
    mask = added if "layer_types" in FAMILIES[llm.model.config.model_type] else added["full_attention"]
    if llm.model.config.model_type == "gemma2":
        mask = added
    return theirs(inputs_embeds=inputs.inputs_embeds, attention_mask=mask, position_ids=inputs.position_ids).logits


def loss(llm: HFCausalLM, inputs: LLMInputs) -> torch.Tensor:
    keep = inputs.predicts()
    return llm.loss(llm(inputs, keep), inputs.targets(keep))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_any_form_are_the_written_out_mask(family: str) -> None:
    llm, apart = built(family), built(family, packing=False)
    assert llm.packs
    assert not apart.packs
    single, packed = rows([[0], [1], [2]]), rows([[0, 1], [2]])
    real = single.segments > 0
    wanted = written_out(llm, single)
    assert (llm.head(llm(rows([[1]]))) - wanted[1, : LENGTHS[1]]).abs().max() < 1e-4
    for model in (llm, apart):
        assert (model.head(model(single))[real] - wanted[real]).abs().max() < 1e-4
        assert (model.head(model(packed))[packed.segments > 0] - wanted[real]).abs().max() < 1e-4
    losses = [loss(model, inputs) for model in (llm, apart) for inputs in (single, packed)]
    grads = [
        torch.autograd.grad(one, inputs.inputs_embeds)[0][inputs.segments > 0]
        for one, inputs in zip(losses, (single, packed) * 2, strict=True)
    ]
    assert max((one - losses[0]).abs().item() for one in losses) < 1e-4
    assert max(float((one - grads[0]).abs().max()) for one in grads) < 1e-4
    without = LLMInputs(**{**vars(single), "blocks": None})
    assert (llm.head(llm(without))[0] - wanted[0]).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_without_a_cache_and_of_single_prompts(family: str) -> None:
    llm = built(family)
    prompt = Prompt.of(rows([[0], [1], [2]]))
    ends = StopCriteria((), 1, 0)
    with torch.no_grad():
        for options in ({}, {"num_beams": 2}):
            generation = EVALUATION.replace(max_new_tokens=8, **options)
            cached = decode(llm.model, prompt, generation, ends)
            assert decode(llm.model, prompt, generation.replace(use_cache=False), ends) == cached
            assert [decode(llm.model, row, generation, ends)[0] for row in prompt.rows()] == cached
        inputs = rows([[0]])
        first = written_out(llm, inputs)[0, -1].argmax()
        assert decode(llm.model, Prompt.of(inputs), EVALUATION, ends)[0][0] == first


def test_a_family_that_builds_its_own_masks_is_refused() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 2}
    llm = HFCausalLM(HFCausalLM.Config(config={"model_type": "bloom", **sizes}, dtype="fp32")).float()
    with pytest.raises(ConfigError, match="BloomForCausalLM of transformers builds its attention masks by itself"):
        llm(rows([[0]]))
    with pytest.raises(ConfigError, match="fix: set model.fusion.attention to causal"):
        Splice(Splice.Config(attention="image"), llm)
