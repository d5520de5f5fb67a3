"""The guide to Hugging Face and vLLM, on a run of the tiny system: its commands and its Python run as they stand."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image as Images

from vlm.checkpoint.load import load_model
from vlm.checkpoint.provenance import fingerprint, make_provenance
from vlm.checkpoint.run_folder import RunDir
from vlm.checkpoint.train_state import trainable_tensors
from vlm.cli.main import main
from vlm.config.api import load_config
from vlm.config.tree import to_yaml

sys.path.insert(0, str(Path(__file__).parent))
from pages import ROOT, blocks  # noqa: E402

GUIDE = (ROOT / "docs" / "guides" / "to_hugging_face_and_vllm.md").read_text(encoding="utf-8")
GGUF = "--to gguf"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder of the tiny system, whose projection is random, under the name that the guide uses."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = {"arch": "tiny", "model_type": "minigpt4"}
    cfg = load_config({"model": model, "run": {"output_dir": "output/mine"}}, check="none")
    built = load_model(cfg, device="cpu")
    folder, text = RunDir(cfg.run.output_dir), to_yaml(cfg.resolved)
    folder.prepare()
    record = make_provenance(
        step=7,
        config=cfg.resolved,
        metrics={"loss": 1.5},
        fingerprints=fingerprint(built),
        trained=["bridge.1.proj.weight"],
    )
    folder.write_config(text)
    folder.save(7, trainable_tensors(built), {}, record, text)
    Images.new("RGB", (80, 60), "red").save("cat.png")
    return folder.path


def test_commands_and_python(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in [line for block in blocks(GUIDE, "bash") for line in block.splitlines()]:
        if GGUF in command:  # tests/inference/hub/test_gguf.py: the tiny system has another encoder
            assert main(command.replace("output/siglip ", "output/mine ").split()[1:]) == 2
            assert "not of llama.cpp's LLaVA form: the vision encoder is eva_vit" in capsys.readouterr().err
            continue
        assert main(command.split()[1:]) == 0, command
    assert (tmp_path / "output" / "mine_vllm" / "vllm_plugin" / "vlm_vllm").is_dir()
    card = (tmp_path / "output" / "mine_hf" / "README.md").read_text()
    assert "| steps | 7 |" in card and "| loss | 1.5 |" in card and str(tmp_path) not in card
    assert re.search(r"sha256 of frozen llm \| [0-9a-f]{16}", card)
    (code,) = blocks(GUIDE, "python")
    exec(compile(code, "guide", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out.strip()
    assert (
        main(["chat", "output/mine_vllm", "--image", "cat.png", "--ask", "What is this?", "--max-new-tokens", "4"]) == 0
    )


def test_spellings_and_faults(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = ["weights", "export"]
    spellings = [["output/mine", "--to", "a.pth"], ["--to", "b.pth", "output/mine"], ["output/mine", "c.pth"]]
    spellings += [["output/mine", "--to", "minigpt", "d.pth"], ["output/mine", "--format", "minigpt", "--to", "e.pth"]]
    for words in spellings:
        assert main([*export, *words]) == 0
    assert {f.name for f in Path().glob("*.pth")} == {"a.pth", "b.pth", "c.pth", "d.pth", "e.pth"}
    faults = {
        ("output/mine", "--to", "hf"): "the new file or folder is missing",
        ("--to", "hf", "out"): "no run folder is given",
        ("output/mine", "--to", "hf", "out", "--format", "minigpt"): "name two formats",
        ("output/mine", "--to", "f.pth", "--dtype", "fp16"): "--dtype: the format default has no such option",
        ("output/mine", "--to", "hf", "a.pth"): "a.pth exists",
        ("nowhere", "--to", "hf", "out"): "nowhere",
        ("output/mine", "--to", "hf", "out", "--form", "nothing"): "unknown hf_form 'nothing'",
    }
    for words, text in faults.items():
        assert main([*export, *words]) == 2
        assert text in capsys.readouterr().err
    assert not Path("out").exists()
