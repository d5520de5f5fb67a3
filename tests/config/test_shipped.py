"""Every shipped YAML file checks, once what only the user can give is filled in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vlm.common.paths import asset
from vlm.config.api import load_config
from vlm.config.schema import ConfigProblems
from vlm.config.shipped import archs, corpora, corpus_file
from vlm.config.tree import parse_file

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "train_configs").glob("*.yaml"), *(ROOT / "eval_configs").glob("*.yaml")])
COMMAND = re.compile(r"#\s+(?:\w+:\s+)?(torchrun|python|vlm) ")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_file_checks_when_its_gaps_are_filled(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigProblems) as caught:  # a fresh clone has no LLM, no trained weights, no data
        load_config(file, [f"model.ckpt={tmp_path / 'none'}"], check="needed")
    options = []
    for problem in caught.value.problems:
        assert "must be set: " in problem.message or "no such file or folder" in problem.message, problem
        options.append(f"{problem.path}={tmp_path}")
    cfg = load_config(file, options, check="needed")
    assert cfg.model.llm.config.path
    assert cfg.datasets or cfg.evaluation_datasets or cfg.evaluation_files or "demo.py" in file.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_file_opens_with_what_it_needs_and_its_commands(file: Path) -> None:
    head = file.read_text().split("\nmodel:")[0]
    assert all(line.startswith("#") for line in head.splitlines() if line)
    assert "Needs:" in head
    assert f"vlm config check {file.relative_to(ROOT).as_posix()}" in head
    assert len(COMMAND.findall(head)) >= 2


@pytest.mark.parametrize("name", archs())
def test_arch_file_explains_every_parameter(name: str) -> None:
    arch, model_type = name.split("/")
    tree = parse_file(ROOT / "vlm" / "systems" / arch / f"{model_type}.yaml")
    for param, said in tree.data["params"].items():
        assert said.get("help"), f"{name}: {param} has no help"
    used = set(re.findall(r"params\.(\w+)", (ROOT / "vlm" / "systems" / f"{name}.yaml").read_text()))
    assert used <= set(tree.data["params"])
    without = {
        "vit_model",
        "device_8bit",
        "prompt",
        "lora_r",
        "has_qformer",
        "freeze_qformer",
    }  # no effect, or read by `when`
    assert set(tree.data["params"]) - used <= without


@pytest.mark.parametrize("name", archs())
def test_arch_loads(name: str) -> None:
    arch, model_type = name.split("/")
    file = ROOT / "vlm" / "systems" / f"{name}.yaml"
    needed = [param for param, said in parse_file(file).data["params"].items() if said["default"] == "???"]
    text = {"model": {"arch": arch, "model_type": model_type, **dict.fromkeys(needed, "/there")}}
    assert load_config(text, check="none").model.vision is not None


@pytest.mark.parametrize("name", corpora())
def test_corpus_file_explains_itself(name: str) -> None:
    file = corpus_file(name)
    assert file is not None
    data = parse_file(file).data
    assert data["format"]
    assert data["help"]
    assert file.read_text().startswith("# ")


def test_readmes_that_files_refer_to_exist() -> None:
    texts = [f.read_text() for f in [*FILES, *(ROOT / "vlm" / "systems").rglob("*.yaml")]]
    named = {name for text in texts for name in re.findall(r"dataset/README_\w+\.md", text)}
    assert named
    assert all((ROOT / name).is_file() for name in named)


def test_tiny_has_the_sizes_of_its_foundations() -> None:
    sizes = json.loads(Path(asset("tiny/sizes.json")).read_text())
    model = load_config({"model": {"arch": "tiny", "model_type": "minigpt4"}}, check="none").model
    assert model.vision is not None
    for part, said in ((model.vision, sizes["vision"]), (model.bridge[0], sizes["qformer"])):
        assert {key: getattr(part.config, key) for key in said} == said
    assert model.image.config.size == sizes["vision"]["image_size"]
