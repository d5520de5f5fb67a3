"""The resampler: its attention by hand, masks, the zero start, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vlm.common.errors import ConfigError
from vlm.common.types import Features
from vlm.models.bridges.bert_resampler import BertResampler

SIZES = {"num_query_tokens": 3, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def make(**options: Any) -> BertResampler:
    torch.manual_seed(0)
    bridge = BertResampler(BertResampler.Config(**(SIZES | options)), 8, 32).eval()
    for parameter in bridge.parameters():  # an initialised one is too tame to notice mistakes
        torch.nn.init.normal_(parameter, std=0.5)
    return bridge


@pytest.fixture
def features() -> Features:
    return Features(torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(1)))


def by_hand(bridge: BertResampler, image: torch.Tensor) -> torch.Tensor:
    """One image ``[v, 8]``, one head at a time."""
    x = bridge.query_tokens[0]
    for layer in bridge.layers:
        both = torch.cat([x, image])
        q, k, v = layer.query(x), layer.key(both), layer.value(both)
        heads = []
        for h in range(2):
            cut = slice(4 * h, 4 * h + 4)
            heads.append((q[:, cut] @ k[:, cut].T / 2).softmax(-1) @ v[:, cut])
        x = F.layer_norm(layer.attention_out(torch.cat(heads, -1)) + x, (8,), layer.attention_norm.weight,
                         layer.attention_norm.bias, 1e-12)  # fmt: skip
        x = F.layer_norm(layer.down(F.gelu(layer.up(x))) + x, (8,), layer.norm.weight, layer.norm.bias, 1e-12)
    return x


def test_one_attention_over_queries_and_image(features: Features) -> None:
    bridge = make()
    out = bridge(features)
    assert out.tokens.shape == (2, 1, 3, 8)
    assert bridge.num_tokens(99) == 3
    for image in range(2):
        torch.testing.assert_close(out.tokens[image, 0], by_hand(bridge, features.tokens[image, 0]))


def test_masked_image_tokens_are_not_seen(features: Features) -> None:
    bridge = make()
    mask = torch.ones(2, 1, 5, dtype=torch.bool)
    mask[1, 0, 3:] = False
    out = bridge(Features(features.tokens, mask)).tokens
    torch.testing.assert_close(out[0], bridge(features).tokens[0])
    torch.testing.assert_close(out[1], bridge(Features(features.tokens[1:, :, :3])).tokens[0])


def test_fresh_queries_are_zero_and_alike(features: Features) -> None:
    fresh = BertResampler(BertResampler.Config(**SIZES), 8, 32).eval()
    assert not fresh.query_tokens.any()
    out = fresh(features).tokens[0, 0]
    torch.testing.assert_close(out[0], out[2])
    assert fresh.layers[0].query.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert {n for n, _ in fresh.named_buffers()} == {"pooler.weight", "pooler.bias"}


def test_dropout_only_in_training(features: Features) -> None:
    bridge = make(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    assert torch.equal(bridge(features).tokens, bridge(features).tokens)
    bridge.train()
    assert not torch.equal(bridge(features).tokens, bridge(features).tokens)
    still = make(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    torch.testing.assert_close(still(features).tokens, make()(features).tokens)


def test_norm_epsilon_is_an_option() -> None:
    assert make(layer_norm_eps=1e-6).layers[1].norm.eps == 1e-6
    assert make().layers[1].norm.eps == 1e-12


def test_unusable_options() -> None:
    with pytest.raises(ConfigError, match="num_attention_heads, intermediate_size not set, and no file"):
        BertResampler(BertResampler.Config(num_query_tokens=3, num_hidden_layers=1), 8, 32)
    with pytest.raises(ConfigError, match="hidden_size 16 must be the input width, 8"):
        make(hidden_size=16)
    with pytest.raises(ConfigError, match="multiple of num_attention_heads, 3"):
        make(num_attention_heads=3)
