"""Folders of published models whose files hold values of the wrong kind: one message each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.golden.installed import qwen2_vl
from vlm.cli.main import main


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    qwen2_vl.build(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        ("config.json", ["dtype"], "../.."),
        ("config.json", ["text_config"], "x"),
        ("config.json", ["text_config", "eos_token_id"], "7"),
        ("config.json", ["text_config", "model_type"], {"a": 1}),
        ("config.json", ["text_config", "rope_parameters", "mrope_section", 0], 10**9),
        ("generation_config.json", ["eos_token_id"], 2**63),
        ("processor_config.json", ["image_processor"], "x"),
        ("processor_config.json", ["image_processor", "rescale_factor"], "x"),
        ("processor_config.json", ["image_processor", "image_mean"], 1),
        ("processor_config.json", ["image_processor", "resample"], []),
        ("processor_config.json", ["image_processor", "size"], "x"),
    ],
)
def test_odd_values(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, place: list[Any], value: Any
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    content = section = json.loads((folder / file).read_text())
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    (folder / file).write_text(json.dumps(content))
    assert main(["import", str(folder), "--to", str(tmp_path / "x.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "Traceback" not in said
    assert not (tmp_path / "x.yaml").exists()
