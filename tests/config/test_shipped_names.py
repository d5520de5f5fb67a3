"""``system/name`` leads to a run file or a composition of the package; earlier names lead to today's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlm.common.errors import ConfigError
from vlm.common.paths import SYSTEMS
from vlm.config.api import load_config
from vlm.config.shipped import archs, current_name, find, run_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "train", "file"),
    [
        ("lynx/finetune", True, "lynx/train/finetune"),
        ("lynx/finetune", False, "lynx/finetune"),
        ("lynx/eval", True, "lynx/eval/eval"),
        ("lynx/eval", False, "lynx/eval/eval"),
        ("minigpt4/stage2_finetune", False, "minigpt4/train/stage2_finetune"),
        ("lynx/train/finetune", False, "lynx/train/finetune"),
        ("tiny/minigpt4", True, "tiny/minigpt4"),
        ("minigpt4/tiny", False, "tiny/minigpt4"),
        ("mini_gpt4/pretrain_vicuna", False, "minigpt4/pretrain_vicuna0"),
    ],
)
def test_a_name_leads_to_a_file(name: str, train: bool, file: str) -> None:
    assert find(name, train) == SYSTEMS / f"{file}.yaml"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny/evl", "did you mean 'tiny/eval'"),
        ("nothing/eval", "no such file or folder(?s:.*)tiny/"),
        ("nothing", "no such file or folder"),
        ("../tiny/eval", "no such file or folder"),
    ],
)
def test_an_unknown_name_lists_what_ships(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(name, check="none")


def test_run_files_and_compositions_are_kept_apart() -> None:
    assert not {name for name in archs() if name.split("/")[1] in ("train", "eval")}
    assert {"tiny/train/stage1_pretrain", "tiny/eval/eval"} <= set(run_files())
    assert not set(run_files()) & set(archs())


def test_the_published_names_lead_to_every_run_file() -> None:
    links = [*(ROOT / "train_configs").glob("*.yaml"), *(ROOT / "eval_configs").glob("*.yaml")]
    assert {link.resolve() for link in links} == {SYSTEMS / f"{name}.yaml" for name in run_files()}
    assert all(link.is_symlink() for link in links)
    assert (ROOT / "eval_configs" / "published" / "LYNX.yaml").resolve().is_relative_to(SYSTEMS)


def test_a_name_a_path_and_a_composition_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # away from the checkout
    cfg = load_config("tiny/stage1_pretrain", check="none", train=True)
    assert cfg.run.max_steps == 200
    assert cfg.resolved == load_config(ROOT / "train_configs" / "tiny_stage1_pretrain.yaml", check="none").resolved
    assert load_config("tiny/minigpt4", check="none").model.model_type == "minigpt4"


def test_an_existing_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("tiny/eval")
    with pytest.raises(ConfigError, match="not a run folder"):
        load_config("tiny/eval")


def test_packaged_run_files_find_their_prompts_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, needed in (
        ("minigpt4/stage2_finetune", ("llama_model", "vit_path", "q_former_model")),
        ("lynx/pretrain", ("LLM", "vit_path")),
    ):
        options = [f"model.{key}=/there" for key in needed]
        path = load_config(name, options, check="none", train=True).model.template.config.prompt_path
        assert Path(path).is_file()


def test_earlier_names() -> None:
    assert current_name("minigpt4", "tiny") == ("tiny", "minigpt4")
    assert current_name("mini_gpt4", None) == ("minigpt4", None)
    assert current_name("lynx", "finetune") == ("lynx", "finetune")


def test_a_run_folder_with_an_earlier_name(tmp_path: Path) -> None:
    stored = load_config("tiny/minigpt4", check="none").resolved
    stored["model"] |= {"arch": "minigpt4", "model_type": "tiny"}
    model = load_config(stored, check="none").model
    assert (model.arch, model.model_type) == ("tiny", "minigpt4")
