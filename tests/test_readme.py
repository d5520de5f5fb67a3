"""The README tells the truth: its commands parse, its files exist, its YAML checks, its part trains."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from vlm.common.registry import resolve
from vlm.config.api import load_config

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LLM = ROOT / "tests" / "golden" / "minigpt4" / "open" / "llm"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    inline = re.findall(r"`((?:vlm|make|python) [^`]+)`", TEXT)
    return [line for line in [*lines, *inline] if line]


def parser_of(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, exit_on_error=False)
    resolve("command", name)().add_arguments(parser)
    return parser


@pytest.mark.parametrize("command", commands())
def test_command(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words[1:])
        return
    if words[0] == "torchrun" and "vlm.cli" in words:
        words = ["vlm", *words[words.index("vlm.cli") + 1 :]]
    if words[0] == "torchrun":
        words = words[words.index("train.py") :]
    if words[0] == "python" and words[1].endswith(".py"):
        words = words[1:]
    if words[0] in ("train.py", "demo.py"):
        words = ["vlm", words[0].removesuffix(".py"), *words[1:]]
    if words[0] != "vlm":
        assert words[0] in ("python3", "pip", "conda"), f"a command that nothing checks: {command}"
        return
    parser_of(words[1]).parse_args(words[2:]) if len(words) > 2 else parser_of(words[1])
    for word in words:
        if word.startswith(("train_configs/", "eval_configs/")):
            assert (ROOT / word).is_file(), word


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing, missing


def test_own_model_checks() -> None:
    """The composition of the README, with the paths of a small LLM in place of the ones to fill in."""
    block = next(b for b in blocks("yaml") if "my_model" in b)
    config = yaml.safe_load(block)
    assert len(block.strip().splitlines()) <= 26
    config["model"]["llm"]["path"] = str(LLM)
    config["model"]["weights"][1]["path"] = str(LLM)
    checked = load_config(config, check="none")
    assert checked.model.train == {"bridge.*": True, "llm.lora": True}
    assert checked.model.llm.config.lora.r == 16
    assert resolve("vision", checked.model.vision.name)
    assert resolve("dataset", checked.datasets["mine"].format.name)


def test_own_part_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from vlm.common.types import Features

    (tmp_path / "readme_parts.py").write_text(
        next(b for b in blocks("python") if "register_bridge" in b).replace('"gated_linear"', '"readme_gated_linear"')
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("readme_parts")
    cls = resolve("bridge", "readme_gated_linear")
    part = cls(cls.Config(gain=2.0), 6, 4)
    assert part(Features(torch.zeros(1, 1, 3, 6))).tokens.shape == (1, 1, 3, 4)
    assert part.num_tokens(7) == 7
    sys.modules.pop("readme_parts")
