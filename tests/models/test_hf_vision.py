"""Vision towers of transformers against their own forward passes: from folders, with layers, sizes and LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from vlm.checkpoint.formats.hf_vision import HFVisionFolder
from vlm.checkpoint.load import load_file
from vlm.common.errors import ConfigError, WeightsError
from vlm.common.types import MediumShape
from vlm.models.lora import LoraOptions, is_lora
from vlm.models.trainable import select_trainable
from vlm.models.vision.hf import HFVision, patchify
from vlm.models.vision.tower import class_of
from vlm.models.vlm import VLM

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZES |= {"image_size": 28, "patch_size": 7}
FAMILIES: dict[str, dict[str, Any]] = {
    "siglip_vision_model": {},
    "siglip2_vision_model": {"num_patches": 16},
    "clip_vision_model": {},
    "dinov2": {},
    "dinov2_with_registers": {"num_register_tokens": 2},
    "dinov3_vit": {"num_register_tokens": 3},
    "internvl_vision": {"use_mean_pooling": False},
    "idefics3_vision": {},
    "smolvlm_vision": {},
    "aimv2_vision_model": {},
    "pixtral": {"head_dim": 8},
    "vit": {},
    "blip_2_vision_model": {},
}
NATIVE = {"siglip_vision_model", "siglip2_vision_model", "clip_vision_model", "dinov2", "dinov3_vit", "internvl_vision"}
NATIVE |= {"idefics3_vision", "smolvlm_vision", "pixtral", "vit"}


def sizes(family: str, **more: Any) -> dict[str, Any]:
    return {"model_type": family, **SIZES, **FAMILIES.get(family, {}), **more}


def saved(folder: Path, family: str, **more: Any) -> Any:
    """transformers' own tower with random weights, saved in ``folder``."""
    torch.manual_seed(1)
    options = sizes(family, **more)
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    model = class_of(config, "test")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def ours(folder: Path, **options: Any) -> HFVision:
    """``hf_vision`` filled from ``folder``."""
    model = VLM(HFVision(HFVision.Config(path=str(folder), **options)), [], torch.nn.Identity())
    load_file(model, HFVisionFolder(), folder)
    return model.vision.eval()


def theirs(model: Any, pixels: Tensor, **more: Any) -> Any:
    """Output of transformers' tower for ``pixels [m, 3, h, w]``."""
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if model.config.model_type == "siglip2_vision_model":
        patches = patchify(pixels, 7)
        grid = torch.tensor([[pixels.shape[-2] // 7, pixels.shape[-1] // 7]] * len(pixels))
        inputs = {
            "pixel_values": patches,
            "spatial_shapes": grid,
            "pixel_attention_mask": torch.ones(patches.shape[:2]),
        }
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True, **more)


def images(height: int = 28, width: int = 28) -> Tensor:
    return torch.randn(2, 2, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_of_every_family(family: str, tmp_path: Path) -> None:
    """Last state, an earlier one and several; class and register tokens dropped."""
    model, pixels = saved(tmp_path, family), images()
    found = theirs(model, pixels.flatten(0, 1))
    states = [state.reshape(4, -1, 16) for state in found.hidden_states]
    prefix = states[0].shape[1] - 16
    normed = family not in ("clip_vision_model", "pixtral")  # whose classes norm the class token alone, or nothing
    last = ours(tmp_path, post_norm=normed)
    assert not any("mask_token" in name or "head" in name for name in last.state_dict())
    with torch.no_grad():
        result = last(pixels)
        expected = found.last_hidden_state.reshape(4, -1, 16)[:, prefix:]
        torch.testing.assert_close(result.tokens.flatten(0, 1), expected, atol=1e-5, rtol=1e-5)
        assert result.grid.tolist() == [[4, 4], [4, 4]] and result.tokens.shape[2] == last.num_tokens == 16
        kept = ours(tmp_path, layer=[-2, -3], keep_cls=True, keep_registers=True)
        assert len(kept.blocks()) == 2 and kept.num_tokens == 16 + prefix and kept.out_dim == 32
        expected = torch.cat([states[2], states[1]], dim=-1)
        torch.testing.assert_close(kept(pixels).tokens.flatten(0, 1), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last(pixels[1:, 1:]).tokens[0, 0], result.tokens[1, 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(NATIVE))
def test_images_of_any_size(family: str, tmp_path: Path) -> None:
    model, pixels = saved(tmp_path, family), images(21, 42)
    more = {"interpolate_pos_encoding": True} if family.startswith(("siglip_", "clip", "vit")) else {}
    found = theirs(model, pixels.flatten(0, 1), **more)
    native = ours(tmp_path, native=True, post_norm=False)
    with torch.no_grad():
        result = native(pixels)
    expected = found.hidden_states[-1].reshape(4, -1, 16)[:, -18:]
    torch.testing.assert_close(result.tokens.flatten(0, 1), expected, atol=1e-5, rtol=1e-5)
    assert result.grid.tolist() == [[3, 6], [3, 6]] and native.varies
    assert native.counter()(MediumShape(1, 21, 42)).grid == (3, 6)
    square = ours(tmp_path, image_size=42, post_norm=False)
    assert square.num_tokens == 36 and not square.varies


def test_positions_of_another_square_size(tmp_path: Path) -> None:
    """The table of the file stays; positions are interpolated in each call, as the class does."""
    model, pixels = saved(tmp_path, "siglip_vision_model"), images(42, 42)
    found = theirs(model, pixels.flatten(0, 1), interpolate_pos_encoding=True)
    vision = ours(tmp_path, image_size=42)
    with torch.no_grad():
        torch.testing.assert_close(vision(pixels).tokens.flatten(0, 1), found.last_hidden_state, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"takes pixels \[n, f, 3, 42, 42\]"):
        vision(images())


def test_patches_are_cut_as_its_processor_cuts_them() -> None:
    from transformers.models.siglip2.image_processing_siglip2 import Siglip2ImageProcessor

    levels = torch.randint(0, 256, (3, 21, 42), dtype=torch.uint8)
    options = {"patch_size": 7, "max_num_patches": 18, "do_resize": True, "do_normalize": False, "do_rescale": False}
    made = Siglip2ImageProcessor(**options)(levels, return_tensors="pt")
    assert made["spatial_shapes"].tolist() == [[3, 6]]
    torch.testing.assert_close(patchify(levels[None].float(), 7), made["pixel_values"].float())


def test_joined_layers(tmp_path: Path) -> None:
    model, pixels = saved(tmp_path, "siglip_vision_model"), images()
    states = theirs(model, pixels.flatten(0, 1)).hidden_states
    mean = (states[1] + states[3]) / 2
    for combine in ("mean", "weights"):
        vision = HFVision(HFVision.Config(path=str(tmp_path), layer=[-1, -3], combine=combine))
        vision.model.load_state_dict(model.state_dict(), strict=False)
        assert vision.out_dim == 16
        tokens = vision(pixels).tokens
        torch.testing.assert_close(tokens.flatten(0, 1), mean, atol=1e-5, rtol=1e-5)
    tokens.square().sum().backward()
    assert vision.layer_weights.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_the_tower_of_a_dual_encoder(kind: str, tmp_path: Path) -> None:
    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    config = AutoConfig.for_model(kind, vision_config=dict(SIZES), text_config=text)
    whole = class_of(config, "test")(config).eval()
    whole.save_pretrained(tmp_path)
    pixels = images()
    with torch.no_grad():
        found = whole.vision_model(pixels.flatten(0, 1), output_hidden_states=True).hidden_states[-2]
        tokens = ours(tmp_path, layer=-2, keep_cls=True)(pixels).tokens
    torch.testing.assert_close(tokens.flatten(0, 1), found, atol=1e-5, rtol=1e-5)


def test_lora_and_recomputation(tmp_path: Path) -> None:
    """Gradients of the tower equal transformers' own; LoRA starts without effect and alone is trained."""
    model, pixels = saved(tmp_path, "siglip_vision_model"), images()
    model(pixels.flatten(0, 1)).last_hidden_state.square().mean().backward()
    vision = ours(tmp_path, checkpointing=True)
    vision(pixels).tokens.square().mean().backward()
    wanted = dict(model.named_parameters())
    for name, parameter in vision.model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-6, rtol=1e-4)
    adapted = ours(tmp_path, lora=LoraOptions(r=2, targets=["q_proj", "fc1"]))
    torch.testing.assert_close(adapted(pixels).tokens, vision(pixels).tokens)
    holder = torch.nn.Module()
    holder.vision = adapted
    assert len(select_trainable(holder, ["vision.lora"])) == 3 * 2 * 2
    adapted(pixels).tokens.square().sum().backward()
    assert all(is_lora(name) for name, p in adapted.named_parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layer": -4}, "layer is -4, allowed: -3 to -1"),
        ({"layer": []}, "expected one or several different layers"),
        ({"layer": [-1, -1]}, "expected one or several different layers"),
        ({"combine": "weights"}, "combine is weights, but layer names one layer"),
        ({"image_size": 30}, "expected a multiple of patch_size 7"),
        ({"path": "somewhere"}, "exactly one of path"),
        ({"config": {"model_type": "siglipp"}}, "no model type 'siglipp'"),
        (
            {"config": sizes("aimv2_vision_model"), "native": True},
            "native: true, but this tower has positions for 28 x 28",
        ),
        ({"config": sizes("aimv2_vision_model"), "image_size": 42}, "image_size: 42, but this tower has positions"),
        ({"config": sizes("pixtral", head_dim=8), "post_norm": True}, "no norm after its blocks"),
        ({"config": {"model_type": "swin"}}, "a swin is not a vision tower that hf_vision can run"),
        ({"config": {"model_type": "llama"}}, "a llama is not a vision tower that hf_vision can run"),
        ({"config": {"model_type": "siglip_text_model"}}, "not a vision tower that hf_vision can run"),
    ],
)
def test_unusable_options(options: dict[str, Any], text: str) -> None:
    config = {"config": sizes("siglip_vision_model")} | options
    with pytest.raises(ConfigError, match=text) as error:
        HFVision(HFVision.Config(**config))
    assert "SigLIP 2" in str(error.value) or "can run" not in text


def test_unusable_folders(tmp_path: Path) -> None:
    saved(tmp_path / "tower", "siglip_vision_model")
    with pytest.raises(WeightsError, match=r"no vision tower in .* \(config\.json is missing\)"):
        ours(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "own.Config"}, "model_type": "own"}))
    (tmp_path / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(WeightsError, match="which is never run"):
        ours(tmp_path)
    saved(tmp_path / "deep", "siglip_vision_model", num_hidden_layers=4)
    shutil.copy(tmp_path / "tower" / "config.json", tmp_path / "deep" / "config.json")
    with pytest.raises(WeightsError, match=r"16 unexpected: .*encoder\.layers\.3"):
        ours(tmp_path / "deep")
    shards = {"weight_map": {"post_layernorm.bias": "model-00001-of-00002.safetensors"}}
    (tmp_path / "deep" / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(WeightsError, match="model-00001-of-00002.safetensors named by .* but missing"):
        ours(tmp_path / "deep")
    (tmp_path / "tower" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no weights \(model.safetensors"):
        ours(tmp_path / "tower")
