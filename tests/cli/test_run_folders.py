"""Commands that take a run folder use what the run trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vlm.checkpoint.safe import read_tensors
from vlm.cli.main import main

from ..equivalence.tiny import DATA, Tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    tiny = Tiny(tmp_path_factory.mktemp("run"))
    row = '{"id": "1", "image": "image.png", "question": "What is it?", "answer": "boat"}\n'
    (tiny.folder / "qa.jsonl").write_text(row)
    section = f"""
evaluation_datasets:
  mine:
    format: table
    build_info: {{ann_path: {tiny.folder / "qa.jsonl"}, image_path: {DATA}}}
"""
    text = tiny.config.read_text().replace(
        "lora: {r: 2, alpha: 4, dropout: 0.1, targets: [q_proj, v_proj]}", "lora: null"
    )
    tiny.config.write_text(text.replace(', "llm.lora"]', "]") + section)
    tiny.train("run", max_steps=3)
    return tiny.folder / "run"


def test_eval_scores_the_trained_projection(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.Tensor] = {}

    def load(source: Any, device: Any = None, **_: Any) -> Any:
        from vlm.inference.load import load_parts

        model, processor, config, where = load_parts(source, device)
        seen.update({k: v.detach() for k, v in model.named_parameters() if v.requires_grad})
        from vlm.inference.engine import Engine

        return Engine(model, processor, config=config, device=where)

    monkeypatch.setattr("vlm.inference.engine.Engine.load", load)
    assert main(["eval", str(run), "--output", str(run / "eval")]) == 0
    trained = read_tensors(run / "last" / "model.safetensors")
    assert trained.keys() == seen.keys()
    assert all(torch.equal(trained[k], seen[k]) for k in trained)
    assert (run / "eval" / "evaluation.json").exists()


def test_export_writes_the_published_names(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "mine.pth"
    assert main(["weights", "export", str(run), "--to", str(file)]) == 0
    exported = read_tensors(file, "model")
    trained = read_tensors(run / "last" / "model.safetensors")
    assert sorted(exported) == ["llama_proj.bias", "llama_proj.weight"]
    assert torch.equal(exported["llama_proj.weight"], trained["bridge.1.proj.weight"])
    assert main(["weights", "export", str(run), "--to", str(file)]) == 2
    assert "exists" in capsys.readouterr().err
