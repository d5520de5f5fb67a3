"""Golden: a model goes out as the delta it came from; a delta goes out as the two folders of text-generation-webui."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from vlm.checkpoint.peft_adapter import read_adapter
from vlm.checkpoint.safe import read_tensors
from vlm.cli.main import main
from vlm.common.errors import WeightsError
from vlm.systems.visualcla.checkpoint_export import export_delta, export_webui

from .helpers_visualcla import VisualCLACase


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden-root", default=None) or Path(__file__).parent
        folders = sorted(f.parent for f in Path(root, "visualcla").rglob("lora_model") if f.is_dir())
        metafunc.parametrize("case", folders, ids=[f.name for f in folders], indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> VisualCLACase:
    return VisualCLACase(request.param)


def test_delta_goes_out_as_it_came(case: VisualCLACase, tmp_path: Path) -> None:
    source = case.folder / "lora_model"
    names = export_delta(case.unmerged, tmp_path / "lora_model", source)
    ours, theirs = (
        read_tensors(tmp_path / "lora_model" / "adapter_model.bin"),
        read_tensors(source / "adapter_model.bin"),
    )
    assert set(names) == ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    mine, published = read_adapter(tmp_path / "lora_model"), read_adapter(source)
    for key in ("r", "lora_alpha", "lora_dropout", "peft_type", "modules_to_save"):
        assert mine.config[key] == published.config[key], key
    pattern = re.compile(mine.config["target_modules"])
    assert all(pattern.fullmatch(layer) for layer in published.lora)
    assert not pattern.fullmatch("text_model.lm_head")
    for name in ("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json"):
        assert (tmp_path / "lora_model" / name).read_bytes() == (source / name).read_bytes()
    for name in ("text_model", "vision_model", "config.json", "case.json", "tensors.safetensors"):
        (tmp_path / name).symlink_to(case.folder / name)
    again = VisualCLACase(tmp_path).unmerged
    before = case.unmerged.state_dict()
    assert all(torch.equal(t, before[k]) for k, t in again.state_dict().items())
    with pytest.raises(WeightsError, match="exists"):
        export_delta(case.unmerged, tmp_path / "lora_model")


def test_two_folders_for_the_web_ui(case: VisualCLACase, tmp_path: Path) -> None:
    delta = case.folder / "lora_model"
    source, to = str(delta), str(tmp_path / "out")
    assert main(["weights", "export", source, "--to", to, "--format", "text-generation-webui"]) == 0
    text, vision = (tmp_path / "out" / f"lora_model_{side}_lora_model_tgwebui" for side in ("text", "vision"))
    theirs = read_tensors(delta / "adapter_model.bin")
    words = read_tensors(text / "adapter_model.bin")
    assert words.keys() == {k.replace("text_model.", "") for k in theirs if ".text_model." in k}
    assert "base_model.model.lm_head.weight" in words
    eyes = read_tensors(vision / "adapter_model.bin")
    assert eyes.keys() == {
        k.replace("vision_model.vision_model", "vision_model") for k in theirs if ".vision_model." in k
    }
    bridge = read_tensors(vision / "visual_resampler_model.bin")
    assert bridge.keys() == {k.split("visual_resampler.")[1] for k in theirs if ".visual_resampler." in k}
    assert read_tensors(vision / "image_projection_layer_model.bin").keys() == {"weight", "bias"}
    sizes = json.loads((vision / "visual_resampler_config.json").read_text())
    assert sizes == json.loads((delta / "config.json").read_text())["visual_resampler_config"]
    config = read_adapter(text).config
    assert config["modules_to_save"] == ["embed_tokens", "lm_head"]
    layers = {k.split(".lora_A")[0].removeprefix("base_model.model.") for k in words if ".lora_A" in k}
    assert layers
    assert all(re.fullmatch(config["target_modules"], layer) for layer in layers)
    assert read_adapter(vision).lora
    assert main(["weights", "export", source, "--to", to, "--format", "text-generation-webui"]) == 2


def test_not_a_delta(case: VisualCLACase, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    theirs = read_tensors(case.folder / "lora_model" / "adapter_model.bin")
    (folder / "adapter_config.json").write_text((case.folder / "lora_model" / "adapter_config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    torch.save({k: t for k, t in theirs.items() if ".text_model." in k}, folder / "adapter_model.bin")
    with pytest.raises(WeightsError, match="not a delta of VisualCLA"):
        export_webui(folder, tmp_path / "out")
    torch.save({"base_model.model.speech.weight": torch.ones(2)}, folder / "adapter_model.bin")
    with pytest.raises(WeightsError, match=r"speech\.weight does not belong to any part"):
        export_webui(folder, tmp_path / "out")
