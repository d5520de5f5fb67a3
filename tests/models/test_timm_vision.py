"""Models of timm against timm's own forward passes: transformers, convolutional networks, chosen layers, any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from vlm.checkpoint.formats.state_dict import StateDict
from vlm.checkpoint.load import load_file
from vlm.common.errors import ConfigError, WeightsError
from vlm.common.types import MediumShape
from vlm.models.lora import LoraOptions
from vlm.models.vision.timm_vit import TimmVision
from vlm.models.vlm import VLM

SMALL = {"depth": 3, "embed_dim": 24, "num_heads": 2}
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_tiny_patch16_224": (64, SMALL),
    "vit_base_patch16_siglip_224": (64, SMALL),
    "vit_small_patch16_dinov3": (64, SMALL),
    "naflexvit_base_patch16_gap": (64, SMALL),
    "convnext_atto": (64, {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
    "tf_efficientnet_lite0": (64, {}),
    "resnet10t": (64, {}),
    "swin_tiny_patch4_window7_224": (56, {"depths": (1, 1), "num_heads": (1, 2), "embed_dim": 12}),
}


def pair(name: str, tmp_path: Path, **options: Any) -> tuple[Any, TimmVision]:
    """timm's own model of random weights, and ours filled from its file."""
    size, sizes = MODELS[name]
    torch.manual_seed(0)
    own = {} if name.startswith(("convnext", "tf_", "resnet")) else {"img_size": size}
    theirs = timm.create_model(name, num_classes=5, **own, **sizes).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    vision = TimmVision(TimmVision.Config(name, image_size=size, options=sizes, **options))
    model = VLM(vision, [], torch.nn.Identity())
    load_file(model, StateDict("vision"), tmp_path)
    return theirs, vision.eval()


def images(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_timm(name: str, tmp_path: Path) -> None:
    theirs, vision = pair(name, tmp_path, keep_prefix=False)
    pixels = images(*[MODELS[name][0]] * 2)
    with torch.no_grad():
        found, result = theirs.forward_features(pixels.flatten(0, 1)), vision(pixels)
        maps = theirs.forward_intermediates(pixels.flatten(0, 1), indices=[0], intermediates_only=True)
    if found.dim() == 4:
        found = found.flatten(1, 2) if name.startswith("swin") else found.flatten(2).transpose(1, 2)
    prefix = getattr(theirs, "num_prefix_tokens", 0)
    torch.testing.assert_close(result.tokens.flatten(0, 1), found[:, prefix:], atol=1e-5, rtol=1e-5)
    rows, columns = result.grid[0].tolist()
    assert rows * columns == result.tokens.shape[2] == vision.num_tokens and vision.out_dim == found.shape[2]
    assert maps[0].dim() == 4


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "naflexvit_base_patch16_gap", "tf_efficientnet_lite0", "convnext_atto"]
)
def test_chosen_layers(name: str, tmp_path: Path) -> None:
    theirs, vision = pair(name, tmp_path, layer=-2)
    pixels = images(64, 64)
    assert vision.unbuilt
    options = {"return_prefix_tokens": True} if vision.more else {}
    with torch.no_grad():
        flat = pixels.flatten(0, 1)
        found = theirs.forward_intermediates(flat, indices=[-2], intermediates_only=True, output_fmt="NCHW", **options)[
            0
        ]
        tokens = vision(pixels).tokens.flatten(0, 1)
    maps, prefix = found if vision.more else (found, None)
    expected = maps.flatten(2).transpose(1, 2)
    expected = expected if prefix is None else torch.cat([prefix, expected], dim=1)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


def test_several_layers_in_their_order(tmp_path: Path) -> None:
    theirs, vision = pair("vit_tiny_patch16_224", tmp_path, layer=[-1, -3], keep_prefix=False, post_norm=True)
    pixels = images(64, 64)
    with torch.no_grad():
        flat = pixels.flatten(0, 1)
        first, last = theirs.forward_intermediates(flat, [0, 2], norm=True, output_fmt="NLC", intermediates_only=True)
        result = vision(pixels).tokens.flatten(0, 1)
    torch.testing.assert_close(result, torch.cat([last, first], dim=-1), atol=1e-5, rtol=1e-5)
    assert vision.out_dim == 48
    _, vision = pair("vit_tiny_patch16_224", tmp_path, layer=[-1, -2], combine="weights")
    vision(pixels).tokens.square().sum().backward()
    assert vision.layer_weights.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "naflexvit_base_patch16_gap", "convnext_atto"])
def test_images_of_any_size(name: str, tmp_path: Path) -> None:
    theirs, vision = pair(name, tmp_path, native=True, keep_prefix=False)
    pixels, (size, sizes) = images(32, 96), MODELS[name]
    if name.startswith("vit"):
        state = theirs.state_dict()
        theirs = timm.create_model(name, num_classes=5, img_size=size, dynamic_img_size=True, **sizes).eval()
        theirs.load_state_dict(state)
    with torch.no_grad():
        found, result = theirs.forward_features(pixels.flatten(0, 1)), vision(pixels)
    found = found.flatten(2).transpose(1, 2) if found.dim() == 4 else found[:, theirs.num_prefix_tokens :]
    torch.testing.assert_close(result.tokens.flatten(0, 1), found, atol=1e-5, rtol=1e-5)
    shape = vision.counter()(MediumShape(2, 32, 96))
    assert vision.varies and shape.tokens == found.shape[1] and result.grid[0].tolist() == list(shape.grid)


def test_positions_are_resampled_to_another_size(tmp_path: Path) -> None:
    """As timm does when it loads a file into a model of another size."""
    theirs, _ = pair("vit_tiny_patch16_224", tmp_path)
    larger = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96, **SMALL).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(theirs.state_dict(), larger)
    larger.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("head.")})
    vision = TimmVision(TimmVision.Config("vit_tiny_patch16_224", 96, options=SMALL)).eval()
    load_file(VLM(vision, [], torch.nn.Identity()), StateDict("vision"), tmp_path)
    with torch.no_grad():
        pixels = images(96, 96)
        torch.testing.assert_close(vision(pixels).tokens.flatten(0, 1), larger.forward_features(pixels.flatten(0, 1)))


def test_lora(tmp_path: Path) -> None:
    _, vision = pair("naflexvit_base_patch16_gap", tmp_path, lora=LoraOptions(r=2, targets=["qkv"]), checkpointing=True)
    vision(images(64, 64)).tokens.square().sum().backward()
    assert any(".lora_B" in name and p.grad is not None for name, p in vision.named_parameters())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "tf_efficientnet_lite0", "layer": [-1, -2]}, r"different grids \(2 x 2, 4 x 4\)"),
        ({"model": "convnext_atto", "layer": -9}, "layer is -9, allowed: -4 to -1"),
        ({"model": "mixer_s32_224", "native": True, "image_size": None}, "does not take images of"),
        ({"model": "vit_tiny_patch16_224", "image_size": 60}, "multiple of patch_size 16"),
        ({"model": "vit_tiny_patch16_224", "post_norm": True}, "post_norm goes with layer"),
        ({"model": "crossvit_9_240", "image_size": 240}, "does not give one grid of features"),
        ({"model": "vit_tiny_patch16_224", "layer": -1, "combine": "weights"}, "layer names one layer"),
    ],
)
def test_unusable_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        TimmVision(TimmVision.Config(**{"image_size": 64, **options}))


def test_a_block_that_a_file_should_not_have(tmp_path: Path) -> None:
    pair("vit_tiny_patch16_224", tmp_path)
    vision = TimmVision(TimmVision.Config("vit_tiny_patch16_224", 64, layer=-1, options=SMALL | {"depth": 2}))
    with pytest.raises(WeightsError, match=r"unexpected: blocks\.2"):
        load_file(VLM(vision, [], torch.nn.Identity()), StateDict("vision"), tmp_path)
