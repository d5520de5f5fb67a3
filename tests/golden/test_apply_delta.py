"""StreamedText weights: equal to what the published tool wrote, tensor by tensor and bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlm.checkpoint.safe import read_tensors, shards
from vlm.cli.main import main
from vlm.common.errors import WeightsError
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.systems.minigpt4.vicuna_delta import apply_delta


@pytest.fixture
def cases(golden_cases: Callable[[str], list[Path]]) -> list[Path]:
    """Folders with base, delta and the target that the published tool made."""
    return [f for case in golden_cases("minigpt4") for f in case.glob("apply_delta*") if (f / "target").is_dir()]


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {k: t for file in shards(folder) for k, t in read_tensors(file).items()}
    return {k: t for k, t in tensors.items() if not k.endswith("inv_freq")}


def test_equals_the_published_tool(cases: list[Path], tmp_path: Path) -> None:
    for number, case in enumerate(cases):
        target = tmp_path / str(number)
        assert main(["weights", "apply-delta", "--base", f"{case / 'base'}", "--delta-path", f"{case / 'delta'}",
                     "--target", f"{target}"]) == 0  # fmt: skip
        ours, theirs = read_all(target), read_all(case / "target")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
        sizes = [json.loads((f / "config.json").read_text())["vocab_size"] for f in (target, case / "target")]
        assert sizes[0] == sizes[1]
        assert Tokenizer.from_folder(target).bos == Tokenizer.from_folder(case / "target").bos


def test_sharded_delta_and_empty_special_tokens(cases: list[Path], tmp_path: Path) -> None:
    for number, case in enumerate(cases):
        delta, target = tmp_path / f"delta{number}", tmp_path / f"target{number}"
        delta.mkdir()
        tensors = sorted(read_all(case / "delta").items())
        parts = {"a.safetensors": tensors[::2], "b.safetensors": tensors[1::2]}
        for name, part in parts.items():
            save_file({k: t.clone() for k, t in part}, delta / name)
        index = {"weight_map": {k: name for name, part in parts.items() for k, _ in part}}
        (delta / "model.safetensors.index.json").write_text(json.dumps(index))
        for name in ("config.json", "tokenizer.model"):
            (delta / name).write_bytes((case / "delta" / name).read_bytes())
        (delta / "special_tokens_map.json").write_text(json.dumps({"bos_token": "", "eos_token": "", "unk_token": ""}))
        assert len(apply_delta(case / "base", delta, target)) == 2
        theirs = read_all(case / "target")
        assert all(torch.equal(t, theirs[k]) for k, t in read_all(target).items())
        assert json.loads((target / "special_tokens_map.json").read_text())["bos_token"] == "<s>"


def test_wrong_base_and_full_target_are_refused(cases: list[Path], tmp_path: Path) -> None:
    for number, case in enumerate(cases):
        narrow = tmp_path / f"narrow{number}"
        narrow.mkdir()
        save_file({k: t[..., :-1].clone() for k, t in read_all(case / "base").items()}, narrow / "model.safetensors")
        with pytest.raises(WeightsError, match="in the base model"):
            apply_delta(narrow, case / "delta", tmp_path / f"t{number}")
        with pytest.raises(WeightsError, match="already holds files"):
            apply_delta(case / "base", case / "delta", case / "target")
        few = dict(list(read_all(case / "delta").items())[:2])
        part = tmp_path / f"part{number}"
        part.mkdir()
        save_file({k: t.clone() for k, t in few.items()}, part / "model.safetensors")
        with pytest.raises(WeightsError, match="has no"):
            apply_delta(case / "base", part, tmp_path / f"u{number}")
