"""Vision encoders, bridges and language models one by one, and in mixed compositions."""

from __future__ import annotations

import pytest
import torch

from vlm.common.errors import ConfigError, WeightsError
from vlm.common.types import Features
from vlm.models.bridges.concat import Concat
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.mlp import MLP
from vlm.models.bridges.qformer import QFormer
from vlm.models.build import build_model
from vlm.models.llm.hf import HFCausalLM
from vlm.models.llm.packing import can_pack
from vlm.models.vision.eva import EvaViT
from vlm.models.vision.timm_vit import TimmVision
from vlm.testing import LLAMA, part


def test_frames_are_encoded_one_by_one() -> None:
    vision = EvaViT(EvaViT.Config(image_size=28, embed_dim=16, depth=2, num_heads=2)).eval()
    pixels = torch.randn(2, 3, 3, 28, 28)
    whole = vision(pixels).tokens
    assert whole.shape == (2, 3, vision.num_tokens, vision.out_dim)
    torch.testing.assert_close(whole[1, 2], vision(pixels[1:, 2:]).tokens[0, 0], rtol=1e-5, atol=1e-6)


def test_key_bias_is_zero_and_no_parameter() -> None:
    attention = EvaViT(EvaViT.Config(image_size=28, embed_dim=16, depth=1, num_heads=2)).blocks()[0].attn
    assert {n for n, _ in attention.named_parameters()} >= {"q_bias", "v_bias"}
    assert "k_bias" not in attention.state_dict()
    assert not attention.k_bias.any()


def test_pixels_of_another_size() -> None:
    vision = EvaViT(EvaViT.Config(image_size=28, embed_dim=16, depth=1, num_heads=2))
    with pytest.raises(ConfigError, match=r"\[n, f, 3, 28, 28\], got \[1, 1, 3, 42, 42\]"):
        vision(torch.zeros(1, 1, 3, 42, 42))


def test_encoder_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        vision = EvaViT(EvaViT.Config(28, 14, 16, 2, 2, checkpointing=checkpointing)).train()
        vision(torch.ones(1, 1, 3, 28, 28)).tokens.square().sum().backward()
        grads.append(vision.vit.cls_token.grad)
    torch.testing.assert_close(*grads)


def test_concat_joins_raster_neighbours() -> None:
    bridge = Concat(Concat.Config(group=2), 3, 8)
    tokens = torch.arange(5 * 3).float().reshape(1, 1, 5, 3)
    joined = bridge(Features(tokens)).tokens
    assert joined[0, 0].tolist() == [[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]]
    assert bridge.out_dim == 6
    with pytest.raises(ConfigError, match="5 tokens do not divide into groups of 2"):
        bridge.num_tokens(6)


def test_linear_follows_the_llm_or_its_own_width() -> None:
    features = Features(torch.randn(2, 1, 4, 5), torch.ones(2, 1, 4, dtype=torch.bool))
    assert Linear(Linear.Config(), 5, 8)(features).tokens.shape == (2, 1, 4, 8)
    out = Linear(Linear.Config(out_dim=6), 5, 8)(features)
    assert out.tokens.shape[-1] == 6
    assert out.mask is features.mask


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_mlp_depth(depth: int) -> None:
    bridge = MLP(MLP.Config(depth=depth), 5, 8)
    assert sum(isinstance(m, torch.nn.Linear) for m in bridge.layers) == depth
    assert bridge(Features(torch.randn(1, 1, 4, 5))).tokens.shape == (1, 1, 4, 8)


def test_qformer_respects_the_mask() -> None:
    torch.manual_seed(0)
    bridge = QFormer(QFormer.Config(3, 16, 2, 2, 24), 8, 8).eval()
    tokens = torch.randn(1, 1, 6, 8)
    mask = torch.tensor([[[True] * 4 + [False] * 2]])
    wanted = bridge(Features(tokens[:, :, :4])).tokens
    torch.testing.assert_close(bridge(Features(tokens, mask)).tokens, wanted, rtol=1e-5, atol=1e-6)


def test_any_timm_transformer_in_a_composition(compose, example, batched) -> None:
    vision = part("timm", TimmVision.Config("vit_tiny_patch16_224", image_size=32, options={"depth": 2}))
    model = build_model(compose(vision=vision, bridge=[part("mlp", MLP.Config())], train=["bridge.0"]))
    assert model.vision.num_tokens == model.tokens_per_frame == 5
    rows = [example(1, 1, 2, size=32), example(2, 0, 3, media=2, seed=1, size=32)]
    output = model(batched(rows))
    output.loss_sum.backward()
    assert output.num_tokens == 5
    assert model.bridge[0].layers[0].weight.grad.abs().sum() > 0


def test_timm_without_class_token() -> None:
    options = TimmVision.Config("vit_tiny_patch16_224", image_size=32, keep_prefix=False, options={"depth": 1})
    vision = TimmVision(options).eval()
    assert vision(torch.zeros(1, 1, 3, 32, 32)).tokens.shape == (1, 1, vision.num_tokens, vision.out_dim)
    assert vision.num_tokens == 4


@pytest.mark.parametrize(
    ("name", "text"),
    [("vit_tinny", "timm has no 'vit_tinny'"), ("crossvit_9_240", "does not give one grid of features")],
)
def test_unusable_timm_names(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        TimmVision(TimmVision.Config(name))


FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "phi3": {"pad_token_id": 0},
    "gpt2": {},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 32},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_any_language_model(compose, examples, batched, packed, family: str) -> None:
    """Every family trains; batching, packing and the reduced head change nothing."""
    torch.manual_seed(0)
    sizes = LLAMA | {"model_type": family, "bos_token_id": 1, "eos_token_id": 1} | FAMILIES[family]
    model = build_model(compose(llm=part("hf", HFCausalLM.Config(config=sizes))))
    losses = []
    for batch in (batched(examples), packed(examples, 40)):
        full = model(batch, return_logits=True)
        losses += [model(batch).loss_sum.item(), full.loss_sum.item()]
    assert max(losses) - min(losses) < 1e-3
    model(batched(examples)).loss_sum.backward()
    assert model.bridge[1].proj.weight.grad.abs().sum() > 0
    assert can_pack(model.llm.model) == (family in ("llama", "qwen2", "phi3", "gemma2"))


def test_llm_folder_without_config(tmp_path) -> None:
    with pytest.raises(WeightsError, match="config.json is missing"):
        HFCausalLM(HFCausalLM.Config(path=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "no_such_family"}')
    with pytest.raises(WeightsError, match="no_such_family"):
        HFCausalLM(HFCausalLM.Config(path=str(tmp_path)))


@pytest.mark.parametrize(
    "options", [{}, {"path": "x", "config": {"model_type": "llama"}}, {"config": {"model_type": "lama"}}]
)
def test_llm_needs_one_source(options) -> None:
    with pytest.raises(ConfigError, match=r"exactly one of path|no model type 'lama'"):
        HFCausalLM(HFCausalLM.Config(**options))


def test_chain_that_misses_the_llm(build) -> None:
    with pytest.raises(ConfigError, match="ends at width 16, but the LLM's width is 32"):
        build(bridge=[part("qformer", QFormer.Config(3, 16, 2, 2, 24))], train=["bridge.0"])
