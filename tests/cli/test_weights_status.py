"""``vlm weights status``: what compositions need, where it is looked for, and facts for every system."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm.checkpoint.needed.facts import facts_file, facts_of, read_facts
from vlm.checkpoint.needed.look import look
from vlm.cli.main import main
from vlm.common.errors import ConfigError
from vlm.common.paths import ASSETS, CACHE_VARIABLE, asset
from vlm.config.shipped import archs

OPEN = Path(__file__).parents[1] / "golden" / "minigpt4" / "open"
VICUNA = "minigpt4/pretrain_vicuna0"


def states(name: str, *options: str) -> dict[str, str]:
    (status,) = look(name, options)
    return {file.param: file.state for file in status.files}


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache of this machine."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_every_system_that_ships_describes_its_files() -> None:
    systems = sorted({name.split("/")[0] for name in archs()})
    assert [s for s in systems if not facts_file(s).is_file()] == [], "write facts/weights.yaml for these"
    for status in look():
        bare = [file.param for file in status.files if file.facts is None]
        assert not bare, f"{status.name}: {bare} is not described in facts/weights.yaml"


def test_commands_of_the_facts_parse() -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
    from pages import problem

    for system in {name.split("/")[0] for name in archs()}:
        for facts in read_facts(system):
            for command in (*facts.commands, *facts.instead):
                text = re.sub(r"\b[A-Z_]{3,}\b", "folder", command.replace("{to}", "weights/x"))
                assert not (wrong := problem(text)), f"{system}: {command}: {wrong}"


def test_one_system_as_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "status", "tiny"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tiny/minigpt4: complete") and "llama_model" in text and str(ASSETS) in text
    assert main(["weights", "status", "minigpt4", "--json"]) == 1
    found = {c["composition"]: c for c in json.loads(capsys.readouterr().out)}
    assert set(found) == {VICUNA, "minigpt4/pretrain_llama2"}
    files = {file["param"]: file for file in found[VICUNA]["files"]}
    assert list(files) == ["vit_path", "q_former_model", "llama_model", "ckpt"]
    assert files["llama_model"]["state"] == "missing" and files["llama_model"]["expected_bytes"] == 13_500_000_000
    assert files["llama_model"]["ways"][1][-1].startswith("vlm weights apply-delta --base")
    assert "q_former_model" not in {file["param"] for file in found["minigpt4/pretrain_llama2"]["files"]}


def test_paths_after_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"model.llama_model={OPEN / 'llm'}", f"model.ckpt={tmp_path / 'absent.pth'}"]
    given += [f"model.vit_path={OPEN / 'eva_vit_g.pth'}"]
    assert states(VICUNA, *given) == {
        "vit_path": "found",
        "q_former_model": "missing",
        "llama_model": "found",
        "ckpt": "missing",
    }
    assert main(["weights", "status", VICUNA, "--options", *given]) == 1
    text = capsys.readouterr().out
    assert "2 of 4 missing" in text and f"{tmp_path}/absent.pth" in text and "model.llama_model=" not in text
    assert main(["weights", "status", VICUNA, "--options", "model.llama_modle=x"]) == 2
    assert "did you mean 'llama_model'" in capsys.readouterr().err


def test_alternatives_count_by_what_is_set(tmp_path: Path) -> None:
    assert states("visualcla") == {"vision_model": "missing", "text_model": "missing", "lora_model": "missing"}
    merged = f"model.visualcla_model={Path(__file__).parents[1] / 'golden' / 'visualcla' / 'open' / 'merged_model'}"
    assert states("visualcla", merged) == {"visualcla_model": "found"}


def test_downloads_and_the_hub_cache(tmp_path: Path) -> None:
    host = tmp_path / "cache" / "downloads" / "storage.googleapis.com"
    file = host / "sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
    file.parent.mkdir(parents=True)
    shutil.copyfile(OPEN / "eva_vit_g.pth", file)
    repo = tmp_path / "hub" / "models--Vision-CAIR--vicuna-7b"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    shutil.copytree(OPEN / "llm", repo / "snapshots" / "abc")
    (status,) = look(VICUNA)
    found = {f.param: f for f in status.files}
    assert found["vit_path"].state == "found" and found["vit_path"].path == str(file)
    assert found["llama_model"].state == "found" and "--options model.llama_model=" in found["llama_model"].problem
    assert not status.complete


def test_damaged_files_are_not_found(tmp_path: Path) -> None:
    llm = Path(shutil.copytree(OPEN / "llm", tmp_path / "llm"))
    for file in [*llm.glob("*.bin"), *llm.glob("*.safetensors"), *llm.glob("*.index.json")]:
        file.unlink()
    (llm / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001.safetensors"}}))
    (tmp_path / "eva.pth").write_bytes(b"<html>")
    (tmp_path / "empty").mkdir()
    options = {"llama_model": llm, "vit_path": tmp_path / "eva.pth", "ckpt": tmp_path / "empty"}
    (status,) = look(VICUNA, [f"model.{name}={path}" for name, path in options.items()])
    problems = {f.param: f.problem for f in status.files if f.state == "damaged"}
    assert "model-00001.safetensors named by" in problems["llama_model"]
    assert "not a weight file" in problems["vit_path"] and "an empty folder" in problems["ckpt"]


def test_yaml_files_and_run_folders(tmp_path: Path) -> None:
    mine = {
        "model": {
            "arch": "minigpt4",
            "model_type": "pretrain_vicuna0",
            "llama_model": "???",
            "vit_path": asset("tiny/eva_vit.safetensors"),
        }
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    assert states(str(tmp_path / "mine.yaml"))["llama_model"] == "missing"
    assert states(str(tmp_path / "mine.yaml"))["vit_path"] == "found"
    assert states("tiny/eval")["ckpt"] in ("missing", "not set")


@pytest.mark.parametrize(
    "name, said", [("tinny", "unknown system 'tinny'; did you mean 'tiny'"), ("tiny/none", "unknown name")]
)
def test_unknown_names(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "status", name]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "entry, said",
    [
        ({"what": "x", "page": "y"}, r"files\.0\.param.*missing"),
        ({"param": "a", "what": "x", "page": "y", "size": 1}, r"unknown key 'size'"),
        ({"param": "a", "what": "x", "page": "y", "size_gb": -1}, r"size_gb.*found -1"),
        ({"param": "a", "what": "x"}, r"neither commands nor page"),
        ({"param": "a", "what": "x", "page": "y", "compositions": ["no"]}, r"unknown composition 'no'"),
    ],
)
def test_mistakes_in_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: Any, said: str) -> None:
    (tmp_path / "tiny" / "facts").mkdir(parents=True)
    (tmp_path / "tiny" / "facts" / "weights.yaml").write_text(yaml.safe_dump({"files": [entry]}))
    monkeypatch.setattr("vlm.checkpoint.needed.facts.SYSTEMS", tmp_path)
    with pytest.raises(ConfigError, match=said):
        facts_of("tiny/minigpt4")
