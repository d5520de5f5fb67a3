"""Merging refuses a delta that is not whole, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlm.common.errors import WeightsError
from vlm.systems.visualcla.checkpoint import bridge_names
from vlm.systems.visualcla.merge import merge_visualcla

OPEN = Path(__file__).parents[1] / "golden" / "visualcla" / "open"
PEFT_PREFIX = "base_model.model."


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OPEN / "lora_model", tmp_path / "lora_model"))


def keep(delta: Path, wanted: Callable[[str], bool]) -> None:
    file = delta / "adapter_model.bin"
    torch.save({k: t for k, t in torch.load(file, weights_only=True).items() if wanted(k)}, file)


def edit_resampler(delta: Path, **changes: object) -> None:
    config = json.loads((delta / "config.json").read_text())
    config["visual_resampler_config"] |= changes
    (delta / "config.json").write_text(json.dumps(config))


def refused(delta: Path, said: str) -> None:
    target = delta.parent / "merged"
    with pytest.raises(WeightsError, match=said):
        merge_visualcla(OPEN / "text_model", OPEN / "vision_model", [delta], target)
    assert {f.name for f in delta.parent.iterdir()} == {"lora_model"}


@pytest.mark.parametrize(
    "name, said",
    [
        ("image_projection_layer.", r"missing: image_projection_layer\.bias, image_.*weight \(2 in all\)"),
        ("visual_resampler.query_embeddding", r"missing: visual_resampler\.query_embeddding \(1 in all\)"),
        ("visual_resampler.encoder.layer.1.output.dense.weight", r"missing: .*layer\.1\.output\.dense\.weight"),
        ("text_model.lm_head.", r"embed_tokens\.weight has 485 rows, the foundation's 481, and .*lm_head.* missing"),
    ],
)
def test_missing_parts(delta: Path, name: str, said: str) -> None:
    keep(delta, lambda key: not key.startswith(PEFT_PREFIX + name))
    refused(delta, said)


def test_layers_that_the_configuration_does_not_state(delta: Path) -> None:
    edit_resampler(delta, num_hidden_layers=1)
    refused(delta, r"not stated by .*config\.json: visual_resampler\.encoder\.layer\.1\.")


def test_another_activation(delta: Path) -> None:
    edit_resampler(delta, hidden_act="relu")
    refused(delta, r"hidden_act is 'relu'; only 'gelu'")


def test_names_of_the_bridge() -> None:
    held = torch.load(OPEN / "merged_model" / "pytorch_model.bin", weights_only=True)
    assert bridge_names(OPEN / "merged_model" / "config.json") == set(held)
