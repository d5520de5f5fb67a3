"""Positions of three axes: as transformers counts them, in rows of any form and in generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from vlm.common.errors import ConfigError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Example, Features
from vlm.inference.decoding import StopCriteria, decode
from vlm.inference.generation import EVALUATION
from vlm.inference.incremental import Prompt
from vlm.models.fusion.base import LLMInputs
from vlm.models.fusion.splice import Splice
from vlm.models.llm.hf import HFCausalLM
from vlm.processors.collate import collate, collate_rows

VOCAB, WIDTH, IMAGE = 48, 32, 3
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_parameters": ROPE,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
GRIDS = ((2, 3), (4, 1), (2, 2))
"""Rows and columns of the images."""
TEXTS = ([5, 6, MEDIA_TOKEN, 7, 8], [MEDIA_TOKEN, 9, 10, 11, MEDIA_TOKEN, 12], [13, 14, 15])


def built(family: str = "qwen2_vl_text", **options: Any) -> HFCausalLM:
    torch.manual_seed(0)
    config = {"model_type": family, **SIZES, **options.pop("config", {})}
    return HFCausalLM(HFCausalLM.Config(config=config, dtype="fp32", **options)).float().eval()


def visual() -> Features:
    """Tokens of the three images, padded to the largest."""
    sizes = torch.tensor([rows * columns for rows, columns in GRIDS])
    mask = torch.arange(int(sizes.max())) < sizes[:, None]
    tokens = torch.randn(len(sizes), 1, mask.shape[1], WIDTH, generator=torch.Generator().manual_seed(0))
    return Features(tokens, mask[:, None], torch.tensor(GRIDS))


def batch_of(layout: list[list[int]]) -> Batch:
    """Rows of the samples of ``TEXTS``; the last two ids of each are supervised."""

    def example(ids: list[int]) -> Example:
        pixels = [torch.zeros(1, 3, 1, 1)] * ids.count(MEDIA_TOKEN)
        return Example(ids, [IGNORE_INDEX] * (len(ids) - 2) + [i if i > 0 else IGNORE_INDEX for i in ids[-2:]], pixels)

    rows = [[example(TEXTS[i]) for i in row] for row in layout]
    return collate_rows(rows, 0) if max(map(len, layout)) > 1 else collate([row[0] for row in rows], 0)


def fused(llm: HFCausalLM, layout: list[list[int]]) -> LLMInputs:
    inputs = Splice(Splice.Config(positions="grid"), llm)(batch_of(layout), visual())
    embeds = inputs.inputs_embeds.detach().requires_grad_()
    return LLMInputs(**{**vars(inputs), "inputs_embeds": embeds})


def theirs(ids: list[int], grids: list[tuple[int, int]]) -> torch.Tensor:
    """``[L, 3]`` positions of a sample by transformers' own rule."""
    sizes = {"vision_config": {"depth": 1, "embed_dim": 16, "num_heads": 1, "spatial_merge_size": 1}}
    with torch.device("meta"):
        model = Qwen2VLModel(Qwen2VLConfig(text_config=SIZES, **sizes))
    images = iter(grids)
    spread = [[IMAGE] * (lambda g: g[0] * g[1])(next(images)) if i == MEDIA_TOKEN else [i] for i in ids]
    flat = torch.tensor([sum(spread, [])])
    kinds = (flat == IMAGE).int()
    thw = torch.tensor([(1, *grid) for grid in grids]) if grids else None
    return model.get_rope_index(flat, kinds, image_grid_thw=thw)[0][:, 0].T


def expected() -> list[torch.Tensor]:
    return [theirs(TEXTS[0], [GRIDS[0]]), theirs(TEXTS[1], [GRIDS[1], GRIDS[2]]), theirs(TEXTS[2], [])]


@pytest.mark.parametrize("layout", [[[0], [1], [2]], [[0, 1], [2]]])
def test_a_grid_is_counted_as_published(layout: list[list[int]]) -> None:
    inputs = fused(built(), layout)
    assert torch.equal(inputs.position_ids[inputs.segments > 0], torch.cat(expected()))
    assert not inputs.position_ids[inputs.segments == 0].any()


def test_frames_count_on_the_first_axis() -> None:
    features = Features(torch.zeros(1, 3, 4, WIDTH))  # frames of 2 x 2
    batch = collate([Example([5, MEDIA_TOKEN, 6], [IGNORE_INDEX] * 3, [torch.zeros(3, 3, 1, 1)])], 0)
    inputs = Splice(Splice.Config(positions="grid"), built())(batch, features)
    places = inputs.position_ids[0].tolist()
    frames = [[1 + f, 1 + r, 1 + c] for f in range(3) for r in range(2) for c in range(2)]
    assert places == [[0, 0, 0], *frames, [4, 4, 4]]


def reference(llm: HFCausalLM, family: str) -> Any:
    config = AutoConfig.for_model(family, **SIZES)
    model = AutoModel.from_config(config, attn_implementation="eager").float().eval()
    model.load_state_dict(llm.model.model.state_dict())
    return model


@pytest.mark.parametrize("family", ["qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "glm4v_text"])
def test_rows_of_any_form_are_the_decoder_of_transformers(family: str) -> None:
    llm, apart = built(family), built(family, packing=False)
    assert llm.packs
    assert llm.position_axes == 3
    single, packed = fused(llm, [[0], [1], [2]]), fused(llm, [[0, 1], [2]])
    real = single.segments > 0
    decoder = reference(llm, family)
    positions = nn.utils.rnn.pad_sequence(expected(), batch_first=True).movedim(-1, 0)
    wanted = decoder(inputs_embeds=single.inputs_embeds, attention_mask=real.long(), position_ids=positions)[0]
    losses, grads = [], []
    for model in (llm, apart):
        for inputs in (single, packed):
            assert (model(inputs)[inputs.segments > 0] - wanted[real]).abs().max() < 1e-4
            keep = inputs.predicts()
            losses.append(model.loss(model(inputs, keep), inputs.targets(keep)))
            grads.append(torch.autograd.grad(losses[-1], inputs.inputs_embeds)[0][inputs.segments > 0])
    assert max((one - losses[0]).abs().item() for one in losses) < 1e-4
    assert max((one - grads[0]).abs().max().item() for one in grads) < 1e-4


def test_an_answer_goes_on_after_the_largest_position() -> None:
    llm = built()
    prompt = Prompt.of(fused(llm, [[0], [1], [2]]))
    ends, options = StopCriteria((), 1, 0), EVALUATION.replace(max_new_tokens=6)
    with torch.no_grad():
        for generation in (options, options.replace(num_beams=2)):
            cached = decode(llm.model, prompt, generation, ends)
            assert decode(llm.model, prompt, generation.replace(use_cache=False), ends) == cached
            assert [decode(llm.model, row, generation, ends)[0] for row in prompt.rows()] == cached
        embeds, ids, written = prompt.rows()[1].embeds, list(TEXTS[1]), []
        for _ in range(6):  # each token by a whole pass, with transformers' positions
            positions = theirs(ids, [GRIDS[1], GRIDS[2]])
            out = llm.model(inputs_embeds=embeds, position_ids=positions.T[:, None], use_cache=False)
            written.append(int(out.logits[0, -1].argmax()))
            ids.append(10)  # any text
            embeds = torch.cat([embeds, llm.embed(torch.tensor([[written[-1]]]))], 1)
        assert decode(llm.model, prompt, options, ends)[1] == written


def test_a_tied_head() -> None:
    llm = built(config={"tie_word_embeddings": True})
    assert llm.model.lm_head.weight is llm.model.model.embed_tokens.weight
    assert built().model.lm_head.weight is not built().model.model.embed_tokens.weight


def test_a_decoder_without_axes_is_refused() -> None:
    config = {"model_type": "llama", **{k: v for k, v in SIZES.items() if k != "rope_parameters"}}
    llm = HFCausalLM(HFCausalLM.Config(config=config, dtype="fp32"))
    with pytest.raises(ConfigError, match="positions is grid, but the LLM has rotary positions of 1 axis"):
        Splice(Splice.Config(positions="grid"), llm)


def test_tokens_that_lie_in_no_grid_are_refused() -> None:
    features = Features(torch.zeros(1, 1, 3, WIDTH))
    batch = collate([Example([5, MEDIA_TOKEN], [IGNORE_INDEX] * 2, [torch.zeros(1, 3, 1, 1)])], 0)
    with pytest.raises(ConfigError, match="the 3 visual tokens of an image lie in no grid"):
        Splice(Splice.Config(positions="grid"), built())(batch, features)


@pytest.mark.parametrize("family", ["clip_text_model", "siglip_text_model", "siglip"])
def test_what_is_not_a_decoder_is_refused(family: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the language model"):
        HFCausalLM(HFCausalLM.Config(config={"model_type": family}, dtype="fp32"))
