"""A part of another package is found by decorator, by entry point and by path, and works in training."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.common import registry
from vlm.common.errors import ConfigError
from vlm.common.trust import trusting
from vlm.config.api import effective, load_config

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).parent / "site"
LLM = ROOT / "tests" / "golden" / "minigpt4" / "open" / "llm"
PARTS = re.findall(
    r"""register_(\w+)\(["'](\w+)["']\).*\n(?:@.*\n)*(?:class|def) (\w+)""", (SITE / "acme" / "parts.py").read_text()
)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package can be imported but is not installed, and nothing of it is registered."""
    monkeypatch.syspath_prepend(str(SITE))
    forget()
    yield
    forget()


@pytest.fixture
def installed(site: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for PYTHONPATH with the metadata of an installed package."""
    info = tmp_path / "metadata" / "acme-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vlm.plugins]\nacme = acme.parts\n")
    monkeypatch.syspath_prepend(str(info.parent))
    return info.parent


def forget() -> None:
    """Nothing of the package is imported, registered or known."""
    for module in [m for m in sys.modules if m.split(".")[0] == "acme"]:
        del sys.modules[module]
    for key in [key for key, cls in registry._classes.items() if cls.__module__.startswith("acme")]:
        del registry._classes[key]
    for cached in (registry._declared, registry._all_sources, registry._sources, registry._entry_points):
        cached.cache_clear()


def test_there_is_one_of_the_kinds_that_packages_bring() -> None:
    kinds = {kind for kind, _, _ in PARTS}
    assert kinds >= {"vision", "bridge", "template", "image", "dataset", "task", "scheduler", "tracker"}
    assert kinds >= {"checkpoint_format", "source", "export", "generation"}


@pytest.mark.parametrize(("kind", "name", "cls"), PARTS)
def test_by_decorator(kind: str, name: str, cls: str, site: None) -> None:
    with pytest.raises(ConfigError, match=name):
        registry.resolve(kind, name)
    registry.load_plugin("acme.parts")
    assert registry.resolve(kind, name).__name__ == cls
    assert name in registry.names(kind)


@pytest.mark.parametrize(("kind", "name", "cls"), PARTS)
def test_by_entry_point(kind: str, name: str, cls: str, installed: Path) -> None:
    assert name in registry.names(kind)
    assert "acme.parts" not in sys.modules
    assert registry.resolve(kind, name).__name__ == cls


@pytest.mark.parametrize(("kind", "name", "cls"), PARTS)
def test_by_path(kind: str, name: str, cls: str, site: None) -> None:
    path = f"acme.parts:{cls}"
    with pytest.raises(ConfigError, match="only with --trust"):
        registry.resolve(kind, path)
    assert "acme.parts" not in sys.modules
    with trusting():
        assert registry.resolve(kind, path).__name__ == cls
    assert registry.resolve(kind, path).__name__ == cls  # nothing is imported for it any more


@pytest.mark.parametrize(
    ("kind", "path", "words"),
    [
        ("vision", "acme.parts:stairs", "expected a class, found <function stairs"),
        ("scheduler", "acme.parts:json", "expected a function, found <module"),
        ("vision", "acme.parts:Nothing", "has no 'Nothing'"),
        ("vision", "acme.missing:Nothing", "no such module"),
    ],
)
def test_by_a_wrong_path(kind: str, path: str, words: str, site: None) -> None:
    with trusting(), pytest.raises(ConfigError, match=words):
        registry.resolve(kind, path)


def test_a_plugin_that_is_gone_hides_nothing(installed: Path, caplog: pytest.LogCaptureFixture) -> None:
    (installed / "acme-1.0.dist-info" / "entry_points.txt").write_text("[vlm.plugins]\nacme = acme_gone.parts\n")
    assert "timm" in registry.names("vision")
    assert "plugin acme_gone.parts: no such module" in caplog.text


MODEL = """
model:
  vision: {name: VISION, width: 16}
  bridge: [{name: BRIDGE, gain: 0.5}]
  llm: {name: hf, path: LLM}
  template: {name: TEMPLATE}
  image: {name: IMAGE, size: 32}
  train: ["bridge.*"]
  weights:
    - {format: hf_llm, path: LLM, into: llm}
    - {format: WEIGHTS, path: vision.npz, into: vision}
datasets:
  tags: {format: DATASET, build_info: {index: data/index.json}, batch_size: 2}
run:
  task: TASK
  lr_sched: SCHEDULE
  trackers: [jsonl, TRACKER]
  init_lr: 1.0e-3
  max_steps: 2
  log_freq: 1
  num_workers: 0
  device: cpu
  output_dir: out
"""
NAMES = {
    "VISION": ("acme_patches", "acme.parts:Patches"),
    "BRIDGE": ("acme_gated", "acme.parts:GatedLinear"),
    "TEMPLATE": ("acme_plain", "acme.parts:Shouting"),
    "IMAGE": ("acme_inverted", "acme.parts:Inverted"),
    "WEIGHTS": ("acme_npz", "acme.parts:Npz"),
    "DATASET": ("acme_tags", "acme.parts:NameTags"),
    "TASK": ("acme_pretrain", "acme.parts:Loud"),
    "SCHEDULE": ("acme_stairs", "acme.parts:stairs"),
    "TRACKER": ("acme_lines", "acme.parts:Lines"),
}


def write(folder: Path, by_path: bool, head: str = "") -> Path:
    """A training file, four images and the encoder's weights."""
    text = MODEL.replace("LLM", str(LLM))
    for word, names in NAMES.items():
        text = text.replace(word, f'"{names[by_path]}"')
    data = folder / "data"
    data.mkdir()
    rows = []
    for index, color in enumerate(["red", "green", "blue", "white"]):
        Image.new("RGB", (40, 30), color).save(data / f"{index}.png")
        rows.append({"file": f"{index}.png", "tag": color})
    (data / "index.json").write_text(json.dumps(rows))
    rng = np.random.default_rng(0)
    shapes = {"project.weight": (16, 3, 8, 8), "project.bias": (16,)}
    np.savez(folder / "vision.npz", **{k: rng.normal(size=s).astype("float32") for k, s in shapes.items()})
    (folder / "run.yaml").write_text(head + text)
    return folder / "run.yaml"


@pytest.mark.parametrize(
    "way", ["entry point", *(pytest.param(way, marks=pytest.mark.heavy) for way in ("plugins", "path"))]
)
def test_two_steps_of_training(way: str, tmp_path: Path, installed: Path) -> None:
    write(tmp_path, way == "path", "plugins: [acme.parts]\n" if way == "plugins" else "")
    paths = [SITE, ROOT, *([installed] if way == "entry point" else [])]
    done = subprocess.run(
        [sys.executable, "-m", "vlm.cli", "train", "run.yaml"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "task_was_here").exists()
    assert (tmp_path / "out" / "acme.txt").read_text().splitlines() == ["1 0.001", "2 0.001"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert (tmp_path / "out" / "last" / "model.safetensors").exists()


def test_another_image_recipe_replaces_the_options_of_the_first(site: None, tmp_path: Path) -> None:
    file = write(tmp_path, True)
    file.write_text(file.read_text().replace('image: {name: "acme.parts:Inverted", size: 32}', "image: {size: 32}"))
    cfg = load_config(tmp_path / "run.yaml", check="none", trust=True)
    assert cfg.model.image.name == "recipe" and "name" not in effective(cfg)["model"]["image"]
    name = "acme.parts:Inverted"
    other = load_config(
        tmp_path / "run.yaml", [f"model.image.name={name}", "model.image.size=32"], check="none"
    ).model.image
    assert (other.name, other.given) == (name, {"size": 32})
    with pytest.raises(ConfigError, match="unknown key 'invert'"):
        load_config(tmp_path / "run.yaml", ["model.image.invert=false"], check="none")
    options = ["model.image.size=32", "model.image.invert=false"]
    stored = load_config(tmp_path / "run.yaml", [f"model.image.name={name}", *options], check="none")
    again = load_config(stored.resolved, check="none").model.image
    assert (again.name, again.config.size, again.config.invert) == (name, 32, stored.model.image.config.invert)
    assert again.config.invert is False


def test_another_generation_has_its_own_defaults(site: None, tmp_path: Path) -> None:
    from vlm.inference.generation import default_generation

    options = ["model.generation={name: 'acme.parts:Terse', num_beams: 2}"]
    answer = default_generation(load_config(write(tmp_path, True), options, check="none", trust=True))
    assert (type(answer).__name__, answer.max_new_tokens, answer.num_beams) == ("Terse", 3, 2)


def test_a_source_of_a_plugin_is_recognised(installed: Path, tmp_path: Path) -> None:
    from vlm.inference.load import read_source

    write(tmp_path, True)
    (tmp_path / "acme.json").write_text('{"yaml": "run.yaml"}')
    cfg = read_source(tmp_path, ["run.seed=5"])
    assert (cfg.run.seed, cfg.model.vision.name) == (5, "acme.parts:Patches")
