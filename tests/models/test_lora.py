"""LoRA by part: which layers, in which precision, on every kind of part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlm.checkpoint.strict import NamedTensors, copy_strictly
from vlm.common.errors import ConfigError
from vlm.models.lora import LoraOptions, LoraTargetError, inject_lora, is_lora, target_layers
from vlm.models.precision import cast_matmuls
from vlm.models.vision.eva import EvaViT
from vlm.models.vision.timm_vit import TimmVision


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "k_proj": nn.Linear(4, 4)})
        self.mlp = nn.ModuleDict({"up": nn.Linear(4, 4), "k_proj": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})


def test_targets_are_names_endings_or_one_expression() -> None:
    block = nn.Sequential(Block(), Block())
    assert target_layers(block, ["k_proj"]) == ["0.attn.k_proj", "0.mlp.k_proj", "1.attn.k_proj", "1.mlp.k_proj"]
    assert target_layers(block, ["attn.k_proj", "up"]) == ["0.attn.k_proj", "0.mlp.up", "1.attn.k_proj", "1.mlp.up"]
    assert target_layers(block, ["0.mlp.up"]) == ["0.mlp.up"]
    assert target_layers(block, r".*attn\.(q|k)_proj") == [f"{i}.attn.{n}_proj" for i in (0, 1) for n in "qk"]
    assert target_layers(block, r"1\..*up") == ["1.mlp.up"]
    for targets in (["proj"], "k_proj", ["norm"], ["up", "down"]):  # an expression has to match the whole name
        with pytest.raises(LoraTargetError, match=r"no linear layer is called .*\(there are: k_proj, q_proj, up\)"):
            target_layers(block, targets)


def test_only_the_chosen_layers_are_wrapped() -> None:
    block = nn.Sequential(Block(), Block())
    inject_lora(block, LoraOptions(r=2, targets=["0.attn.k_proj", "1.mlp.up"]))
    wrapped = {n.removesuffix(".base_layer") for n, _ in block.named_modules() if n.endswith(".base_layer")}
    assert wrapped == {"0.attn.k_proj", "1.mlp.up"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 0}, "lora.r is 0"),
        ({"dropout": 1.0}, "lora.dropout is 1.0"),
        ({"targets": []}, "lora.targets is empty"),
        ({"targets": "(q_proj"}, "is not a regular expression"),
    ],
)
def test_unusable_options(options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LoraOptions(**options)


def test_matrices_stay_float32_over_a_half_base() -> None:
    block = Block().half()
    inject_lora(block, LoraOptions(r=2, targets=["q_proj"]))
    block.requires_grad_(False)
    for dtype in (torch.float16, torch.bfloat16):
        cast_matmuls(block, dtype)
        kinds = {is_lora(f".{n}"): p.dtype for n, p in block.named_parameters() if "q_proj" in n}
        assert kinds == {False: dtype, True: torch.float32}


def test_half_precision_differs_from_a_float32_update_by_rounding() -> None:
    """Published VisualCLA adds a float32 update to a half layer; autocast forms the update in half, as in training."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(64, 64)).bfloat16()
    inject_lora(block, LoraOptions(r=4, alpha=8, dropout=0, targets=["0"]))
    layer = block[0]
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    nn.init.normal_(b)
    x = torch.randn(5, 64).bfloat16()
    with torch.no_grad():
        published = layer.base_layer(x)
        published += (x.float() @ a.T @ b.T) * 2
        with torch.autocast("cpu", torch.bfloat16):
            ours = block(x)
    assert ours.dtype is published.dtype is torch.bfloat16
    scale = published.abs().max().float()
    assert (ours.float() - published.float()).abs().max() < 2 * torch.finfo(torch.bfloat16).eps * scale
    assert (published - layer.base_layer(x)).abs().max() > 0.5  # the update is there


@pytest.mark.parametrize("kind", ["eva", "timm", "eva02", "beit"])
def test_other_encoders_take_it_too_and_their_files_still_fit(kind: str) -> None:
    lora = LoraOptions(r=2, targets=["attn.qkv"])

    def make(options: LoraOptions | None) -> nn.Module:
        torch.manual_seed(0)
        if kind == "eva":
            return EvaViT(EvaViT.Config(image_size=28, embed_dim=16, depth=2, num_heads=2, lora=options)).eval()
        sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 14}
        names = {"timm": "vit_tiny_patch16_224", "eva02": "eva02_tiny_patch14_224", "beit": "beit_base_patch16_224"}
        config = TimmVision.Config(names[kind], image_size=28, options=sizes, lora=options)
        return TimmVision(config).eval()

    plain, wrapped = make(None), make(lora)
    state = {k: torch.randn_like(t) * 0.3 for k, t in plain.state_dict().items()}
    for module in (plain, wrapped):
        copy_strictly(module, NamedTensors("file", dict(state)))
    pixels = torch.randn(1, 1, 3, 28, 28)
    torch.testing.assert_close(wrapped(pixels).tokens, plain(pixels).tokens)
    assert sum(is_lora(n) for n, _ in wrapped.named_parameters()) == 4
    wrapped(pixels).tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in wrapped.named_parameters() if ".lora_B." in n)
