"""The CLIP tower against transformers' own forward pass, and its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm.common.errors import ConfigError, WeightsError
from vlm.models.lora import LoraOptions, is_lora
from vlm.models.trainable import select_trainable
from vlm.models.vision.clip import Clip

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZES |= {"image_size": 28, "patch_size": 14}


def make(**options: Any) -> Clip:
    torch.manual_seed(0)
    return Clip(Clip.Config(config=dict(SIZES), **options)).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def states(pixels: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states ``[6, 5, 16]`` before, between and after the blocks, by transformers; then the normed last."""
    from transformers import CLIPVisionModel

    model = make(post_layernorm=True).model
    assert isinstance(model, CLIPVisionModel)
    with torch.no_grad():
        found = list(model(pixels.flatten(0, 1), output_hidden_states=True).hidden_states)
        return [*found, model.post_layernorm(found[-1])]


def test_tokens_are_those_of_the_asked_block(pixels: torch.Tensor, states: list[torch.Tensor]) -> None:
    whole = make(post_layernorm=True).state_dict()
    for options, wanted in (
        ({}, states[3]),
        ({"layer": -2}, states[2]),
        ({"layer": -3, "keep_cls": False}, states[1][:, 1:]),
        ({"post_layernorm": True}, states[4]),
        ({"keep_cls": False}, states[3][:, 1:]),
    ):
        clip = make(**options)
        clip.load_state_dict({k: whole[k] for k in clip.state_dict()})
        with torch.no_grad():
            tokens = clip(pixels).tokens
        assert tokens.shape == (2, 3, clip.num_tokens, clip.out_dim)
        torch.testing.assert_close(tokens.flatten(0, 1), wanted)


def test_activation_is_quick_gelu_unless_said_otherwise() -> None:
    x = torch.linspace(-2, 2, 7)
    quick = make().blocks()[0].mlp.activation_fn
    torch.testing.assert_close(quick(x), x * torch.sigmoid(1.702 * x))
    exact = Clip(Clip.Config(config=SIZES | {"hidden_act": "gelu"})).blocks()[0].mlp.activation_fn
    torch.testing.assert_close(exact(x), torch.nn.functional.gelu(x))


def test_sizes_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": SIZES}))
    assert Clip(Clip.Config(path=str(tmp_path))).num_tokens == 5
    assert Clip(Clip.Config(path=str(tmp_path), image_size=42)).num_tokens == 10
    inner = tmp_path / "vision_encoder"
    inner.mkdir()
    (inner / "config.json").write_text(json.dumps(SIZES | {"model_type": "clip_vision_model", "num_hidden_layers": 1}))
    assert len(Clip(Clip.Config(path=str(tmp_path))).blocks()) == 1


def test_unusable_options(tmp_path: Path, pixels: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="exactly one of path"):
        Clip(Clip.Config())
    with pytest.raises(ConfigError, match="layer is -4, allowed: -3 to -1"):
        make(layer=-4)
    with pytest.raises(ConfigError, match="layer is 2"):
        make(layer=2)
    with pytest.raises(WeightsError, match=r"no CLIP in .* \(config\.json is missing\)"):
        Clip(Clip.Config(path=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(WeightsError, match="model_type 'llama' is not a CLIP"):
        Clip(Clip.Config(path=str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not JSON"):
        Clip(Clip.Config(path=str(tmp_path)))
    with pytest.raises(ConfigError, match="takes pixels"):
        make()(pixels[..., :14])


def test_lora_trains_and_the_rest_stays_in_eval_mode(pixels: torch.Tensor) -> None:
    plain = make(post_layernorm=True)
    clip = make(post_layernorm=True, lora=LoraOptions(r=2, targets=["q_proj", "fc1"]))
    state = plain.state_dict()
    clip.load_state_dict({k: state.get(k.replace(".base_layer", ""), v) for k, v in clip.state_dict().items()})
    torch.testing.assert_close(clip(pixels).tokens, plain(pixels).tokens)  # B starts at zero
    holder = torch.nn.Module()
    holder.vision = clip
    names = select_trainable(holder, ["vision.lora"])
    assert len(names) == 3 * 2 * 2
    clip(pixels).tokens.square().sum().backward()
    moved = [n for n, p in clip.named_parameters() if p.grad is not None]
    assert all(is_lora(n) for n in moved)
    assert any("lora_B" in n for n in moved)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputation_gives_the_same_gradients(pixels: torch.Tensor, checkpointing: bool) -> None:
    clip = make(checkpointing=checkpointing)
    clip(pixels).tokens.square().mean().backward()
    grad = clip.model.embeddings.patch_embedding.weight.grad
    reference = make()
    reference(pixels).tokens.square().mean().backward()
    torch.testing.assert_close(grad, reference.model.embeddings.patch_embedding.weight.grad)
