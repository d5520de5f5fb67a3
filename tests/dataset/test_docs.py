"""The pages under dataset/ tell the truth: commands parse, links lead somewhere, entries are read."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml

from vlm.common.registry import names, resolve
from vlm.config.api import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "dataset").glob("*.md"))
CORPORA = sorted((ROOT / "vlm" / "datasets" / "corpora").glob("*.yaml"))
REFCOCO = ("refcoco", "refcocop", "refcocog")
SCRIPTS = ("wget", "pip", "img2dataset", "python")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
        inline = re.findall(r"`(vlm [a-z]+ [^`]+)`", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL))
        found += [(page.name, line.strip()) for line in [*text.splitlines(), *inline] if line.strip()]
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands(page: str, command: str) -> None:
    words = shlex.split(command)
    if words[0] != "vlm":
        assert words[0] in SCRIPTS, f"a command that nothing checks: {command}"
        assert words[0] != "python" or (ROOT / words[1]).is_file(), words[1]
        return
    if len(words) == 2:
        assert words[1] in names("command")
        return
    parser = argparse.ArgumentParser(exit_on_error=False)
    resolve("command", words[1])().add_arguments(parser)
    parser.parse_args(words[2:])
    for word in words:
        if word.startswith(("train_configs/", "eval_configs/")):
            assert (ROOT / word).is_file(), word
    named = set(words[words.index("--only") + 1 :]) if "--only" in words else set()
    corpora = {w for w in named if not w.startswith("-") and not w.isdigit() and "/" not in w and "." not in w}
    assert corpora <= {f.stem for f in CORPORA}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [m for m in re.findall(r"`(README_\w+\.md)`", page.read_text("utf-8")) if not (page.parent / m).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_entries_are_read(page: Path) -> None:
    model = {"arch": "minigpt_v2", "model_type": "pretrain", "llama_model": "llm"}
    for block in blocks(page, "yaml"):
        datasets = (yaml.safe_load(block) or {}).get("datasets") or {}
        cfg = load_config({"model": model, "datasets": datasets}, check="none")
        assert list(cfg.datasets) == list(datasets)


@pytest.mark.parametrize("file", CORPORA, ids=lambda p: p.stem)
def test_pages_that_a_corpus_names(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for page in re.findall(r"dataset/README_\w+\.md", text):
        assert (ROOT / page).is_file(), page
        assert file.stem in (ROOT / page).read_text("utf-8")


def test_training_files_name_pages_that_exist() -> None:
    for file in [*(ROOT / "train_configs").glob("*.yaml"), *(ROOT / "eval_configs").glob("*.yaml")]:
        for page in re.findall(r"dataset/README_\w+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / page).is_file(), f"{file.name}: {page}"


def test_the_mixture_of_minigptv2_is_the_published_one() -> None:
    """Batch size and ratio of every corpus; the page shows the same numbers."""
    with (ROOT / "train_configs" / "minigptv2_finetune.yaml").open(encoding="utf-8") as file:
        datasets = yaml.safe_load(file)["datasets"]
    found = {name: (d["batch_size"], d["sample_ratio"]) for name, d in datasets.items()}
    refer = {f"{inverse}{name}": (6, 10 if inverse else 25) for inverse in ("", "inv") for name in REFCOCO}
    flickr = dict.fromkeys(("flickr_grounded_caption", "flickr_CaptionToPhrase", "flickr_ObjectToPhrase"), (2, 80))
    assert found == {
        "multitask_conversation": (2, 50),
        "llava_conversation": (2, 30),
        "unnatural_instruction": (1, 10),
        "refvg": (6, 40),
        "llava_detail": (4, 20),
        "llava_reason": (4, 80),
        **flickr,
        **refer,
        "coco_caption": (6, 10),
        "textcaps_caption": (6, 30),
        "coco_vqa": (6, 15),
        "ok_vqa": (6, 8),
        "aok_vqa": (6, 12),
        "gqa": (6, 50),
        "ocrvqa": (6, 30),
    }
    page = (ROOT / "dataset" / "README_minigptv2.md").read_text("utf-8")
    for line in page.splitlines():
        names = re.findall(r"`(\w+)`", line) if line.startswith("| `") else []
        for k, name in enumerate(names):
            sizes, ratios = (re.findall(r"\d+", cell) for cell in line.split("|")[2:4])
            assert found[name] == (int(sizes[k % len(sizes)]), int(ratios[k % len(ratios)])), name
            assert not line.startswith("| `") or len(sizes) in (1, len(names))
    assert set(found) <= set(re.findall(r"`(\w+)`", page))
