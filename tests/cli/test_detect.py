"""``vlm data detect``: its entry checks, shows and trains as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm.cli.main import main
from vlm.datasets.detect.layouts import known

ROOT = Path(__file__).resolve().parents[2]
CASE = ROOT / "tests" / "golden" / "minigpt4" / "open"


def test_the_entry_checks_shows_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As in the guide: detect, copy the entry, look, train."""
    shutil.copytree(CASE / "data" / "cc_sbu_align" / "image", tmp_path / "photos")
    images = sorted(f.name for f in (tmp_path / "photos").iterdir())
    records: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "user", "content": "<image>What is it?"},
                {"role": "assistant", "content": "A boat."},
            ],
            "images": [image],
        }
        for image in images[:4]
    ]
    records.append({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]})
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "detect", "mine.jsonl", "--to", "entry.yaml"]) == 0
    out = capsys.readouterr().out
    assert "mine.jsonl: messages of role and content" in out
    assert "images     4 of 4 files found below" in out
    assert "usable     5 of 5 records" in out
    assert f"user: <image {tmp_path}/photos/{images[0]}, " in out
    assert "user: 'Hi'" in out
    config = yaml.safe_load((ROOT / "tests/equivalence/tiny.yaml").read_text().replace("DATA", str(CASE)))
    del config["valid_datasets"]
    config["datasets"] = yaml.safe_load(Path("entry.yaml").read_text())["datasets"]
    config["datasets"]["mine"]["batch_size"] = 2
    config["run"] |= {"max_steps": 2, "iters_per_epoch": 2, "output_dir": "out", "save_freq": 2, "val_freq": 0}
    Path("run.yaml").write_text(yaml.safe_dump(config))
    assert main(["data", "check", "run.yaml"]) == 0
    assert "5 usable, 0 bad" in capsys.readouterr().out
    assert main(["data", "show", "run.yaml", "--options", "datasets.mine.build_info.first=1"]) == 0
    assert "mine (conversation_json, 1 samples)" in capsys.readouterr().out
    assert main(["train", "run.yaml"]) == 0
    assert main(["data", "detect", "mine.jsonl", "--to", "entry.yaml"]) == 0  # what it wrote, it may replace
    assert main(["data", "detect", "mine.jsonl", "--to", "run.yaml"]) == 2


def test_the_guide_has_every_layout() -> None:
    text = (ROOT / "docs" / "guides" / "own_data.md").read_text()
    assert not [layout.name for layout in known().layouts if f"| `{layout.name}` |" not in text]


def test_faults_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "detect", str(tmp_path / "none.json")]) == 2
    assert "no file" in capsys.readouterr().err
    assert main(["data", "detect", str(tmp_path)]) == 2
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.json").write_text("[]")
    assert main(["data", "detect", str(tmp_path)]) == 2
    assert "several files of records: a.json, b.json" in capsys.readouterr().err
    assert main(["data", "detect", str(tmp_path / "a.json"), "--only", "x"]) == 2
