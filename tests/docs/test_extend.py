"""The examples under docs/extend/ run: one per kind, in a copy of their folder."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.golden.installed.folders import save, tokenizer
from vlm.cli.main import main
from vlm.common import registry

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLES = DOCS / "extend" / "examples"
pytestmark = pytest.mark.slow
TRAINED = [
    "bridge",
    "checkpoint_format",
    "dataset",
    "fusion",
    "insert",
    "llm",
    "optimizer",
    "runner",
    "scheduler",
    "task",
    "template",
    "tracker",
    "vision",
]
OTHERS = ["architecture", "benchmark", "command", "export", "source"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the examples as working folder and on the path; what they register is forgotten afterwards."""
    torch.set_num_threads(1)
    place = tmp_path / "examples"
    shutil.copytree(EXAMPLES, place, ignore=shutil.ignore_patterns("output", "__pycache__"))
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    yield place
    for key in [k for k, cls in registry._classes.items() if is_example(cls.__module__)]:
        del registry._classes[key]
    for name in [n for n in sys.modules if is_example(n)]:
        del sys.modules[name]


def is_example(module: str) -> bool:
    return module.partition(".")[0] in ("acme", "palette") or module.startswith("my_")


@pytest.mark.parametrize("kind", TRAINED)
def test_a_part_trains(kind: str, folder: Path) -> None:
    assert main(["train", f"{kind}.yaml"]) == 0
    assert (folder / "output" / kind / "last" / "model.safetensors").is_file()
    extra = {"runner": "cost.json", "tracker": "loss.csv"}
    assert kind not in extra or (folder / "output" / kind / extra[kind]).read_text().count("\n") >= 1


def test_a_benchmark(folder: Path) -> None:
    assert main(["eval", "benchmark.yaml", "--trust", "--images", "right,none", "--allow-random"]) == 0
    scores = json.loads((folder / "output" / "benchmark" / "evaluation.json").read_text())["colors"]
    assert scores["right"]["count"] == scores["none"]["count"] == 4
    assert 0 <= scores["right"]["recall"] <= 1


def test_a_benchmark_with_files_of_its_own(folder: Path) -> None:
    command = ["--plugin", "palette", "eval", "benchmark.yaml", "--benchmark", "palette", "--data", "data"]
    assert main([*command, "--trust", "--allow-random"]) == 0
    scores = json.loads((folder / "output" / "benchmark" / "evaluation.json").read_text())["palette"]["right"]
    assert (scores["protocol"], scores["split"], scores["count"]) == ("official", "colors", 4)
    assert set(scores["by_group"]["accuracy"]) == {"color", "grey"}


def test_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugin", "my_command,my_bridge", "count", "bridge.yaml"]) == 0
    assert re.search(r"[\d,]+ parameters, [\d,]+ trained", capsys.readouterr().out)


def test_an_export(folder: Path) -> None:
    import numpy

    assert main(["train", "bridge.yaml"]) == 0
    export = ["weights", "export", "output/bridge", "--format", "npz", "--to", "bridge.npz"]
    assert main(["--plugin", "my_export", *export]) == 0
    assert {name.split(".")[2] for name in numpy.load(folder / "bridge.npz")} == {"value", "gate"}


def test_a_source(folder: Path) -> None:
    import vlm

    importlib.import_module("my_source")
    assert main(["train", "bridge.yaml", "--options", "run.output_dir=sweep/run_3"]) == 0
    (folder / "sweep" / "best_run.txt").write_text("run_3\n")
    assert isinstance(vlm.load("sweep").chat("What color is it?", image="data/red.png", max_new_tokens=2), str)


def test_an_architecture(folder: Path) -> None:
    importlib.import_module("my_architecture")
    build_vipllava(folder / "vipllava")
    assert main(["verify", "vipllava", "--against", "transformers", "-n", "2"]) == 0
    assert main(["import", "vipllava", "--to", "vipllava.yaml"]) == 0


def build_vipllava(folder: Path) -> None:
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaProcessor,
        VipLlavaConfig,
        VipLlavaForConditionalGeneration,
    )

    words = tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(**small, num_hidden_layers=4, image_size=42, patch_size=14),
        text_config=LlamaConfig(**small, num_hidden_layers=2, vocab_size=len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=[-2, 2],
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    counts = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaProcessor(images, words, **counts, chat_template=words.chat_template)
    save(VipLlavaForConditionalGeneration(config), processor, folder)


def test_a_whole_system(folder: Path) -> None:
    assert main(["train", "acme/train.yaml"]) == 0
    assert main(["weights", "export", "output/acme", "--format", "acme", "--to", "output/acme.safetensors"]) == 0
    assert main(["eval", "acme/eval.yaml", "--trust"]) == 2  # its encoder is random
    assert main(["eval", "acme/eval.yaml", "--trust", "--allow-random"]) == 0
    lines = (folder / "output" / "acme_eval" / "evaluation_answers.jsonl").read_text().splitlines()
    assert len(lines) == 4
    import vlm

    trained, loaded = vlm.load("output/acme"), vlm.load("acme/eval.yaml", allow_random=True)
    theirs = dict(loaded.model.named_parameters())
    assert all(torch.equal(p, theirs[n]) for n, p in trained.model.named_parameters() if n.startswith("bridge."))


def test_every_kind_has_a_page_and_every_example_is_run() -> None:
    pages = {f.stem for f in (DOCS / "extend").glob("*.md")} - {"index", "system"}
    assert pages == {*TRAINED, *OTHERS}
    assert {f.stem.removeprefix("my_") for f in EXAMPLES.glob("my_*.py")} == pages
    for page in pages:
        assert f'```python title="my_{page}.py"' in (DOCS / "extend" / f"{page}.md").read_text("utf-8"), page


def test_the_pages_show_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    synced = importlib.import_module("sync_examples").synced
    for page in (DOCS / "extend").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert synced(text) == text, f"{page.name}: run python docs/sync_examples.py"
