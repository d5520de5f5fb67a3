"""CLIP under its authors' names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from vlm.checkpoint.formats.clip import OpenAIClip, is_torchscript
from vlm.checkpoint.strict import copy_strictly
from vlm.common.errors import WeightsError
from vlm.models.bridges.linear import Linear
from vlm.models.vision.clip import Clip

FOLDER = Path(__file__).parents[1] / "golden" / "mmgpt" / "open" / "clip"
SIZES = {"image_size": 24, "patch_size": 8, "hidden_size": 32, "intermediate_size": 128}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 2}


def tower(**options) -> torch.nn.Module:
    sizes = SIZES | {k: options.pop(k) for k in ("image_size",) if k in options}
    holder = torch.nn.Module()
    holder.vision = Clip(Clip.Config(config=sizes, **options))
    return holder


def load(model, path: Path, tensors: dict[str, Tensor] | None = None) -> set[str]:
    loader = OpenAIClip()
    tensors = loader.read(path) if tensors is None else tensors
    return copy_strictly(model, loader.rename(model, tensors, path.name, set()), loader.hint)


def test_archive_and_flat_file_agree(tmp_path: Path) -> None:
    archive, flat = FOLDER / "ViT-tiny.torchscript.pt", FOLDER / "clip.safetensors"
    assert is_torchscript(archive)
    assert not is_torchscript(flat)
    prefixed = {f"module.{k}": v for k, v in load_safetensors(flat).items()}
    torch.save({"state_dict": prefixed, "epoch": 3}, tmp_path / "open_clip.pt")
    assert not is_torchscript(tmp_path / "open_clip.pt")
    models = [tower(), tower(), tower()]
    for model, path in zip(models, (archive, flat, tmp_path / "open_clip.pt"), strict=True):
        assert load(model, path) == set(model.state_dict())
    for name, value in models[0].state_dict().items():
        assert value.dtype == torch.float32
        assert all(torch.equal(value, other.state_dict()[name]) for other in models[1:]), name


@pytest.mark.parametrize("options", [{"layer": -2}, {"post_layernorm": True}, {"keep_cls": False}])
def test_what_a_tower_does_not_have_is_left_out(options) -> None:
    model = tower(**options)
    assert load(model, FOLDER / "clip.safetensors") == set(model.state_dict())


def test_positions_fit_the_image_size() -> None:
    model = tower(image_size=40)
    load(model, FOLDER / "clip.safetensors")
    table = model.vision.model.embeddings.position_embedding.weight
    assert table.shape == (26, 32)
    assert torch.equal(table[0], load_safetensors(FOLDER / "clip.safetensors")["visual.positional_embedding"][0])


def test_wrong_files() -> None:
    tensors = load_safetensors(FOLDER / "clip.safetensors")
    extra = tensors | {"visual.attnpool.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"1 unexpected: visual\.attnpool\.weight"):
        load(tower(), FOLDER / "x", extra)
    with pytest.raises(WeightsError, match="missing: vision.model.pre_layrnorm"):
        load(tower(), FOLDER / "x", {k: v for k, v in tensors.items() if "ln_pre" not in k})
    with pytest.raises(WeightsError, match="sizes under model.vision differ"):
        load(tower(), FOLDER / "x", tensors | {"visual.conv1.weight": torch.zeros(32, 3, 4, 4)})
    other = SimpleNamespace(vision=Linear(Linear.Config(), 4, 4))
    with pytest.raises(WeightsError, match="format openai_clip fills a CLIP tower"):
        OpenAIClip().rename(other, tensors, "x", set())
