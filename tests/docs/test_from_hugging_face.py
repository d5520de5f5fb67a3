"""The guide "From Hugging Face", command by command, with a small folder in the place of the published one."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.golden.installed import llava
from vlm.cli.main import main
from vlm.common.registry import names
from vlm.inference.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))
from pages import EXAMPLES, ROOT, blocks, commands  # noqa: E402

GUIDE = ROOT / "docs" / "guides" / "from_hugging_face.md"
FOLDER = "llava-1.5-7b-hf"


def test_the_guide_lists_supported_architectures() -> None:
    rows = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])} == {
        "model_type",
        *names("architecture"),
    }


def test_every_command_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text(encoding="utf-8")
    llava.build(tmp_path / FOLDER)
    shutil.copytree(EXAMPLES / "data", "data")
    shutil.move("data/colors.jsonl", "data/mine.jsonl")
    shutil.copy("data/red.png", "cat.jpg")
    lines = [
        line for line in dict.fromkeys(commands("\n".join(f"```bash\n{b}```" for b in blocks(text, "bash")))) if line
    ]
    assert lines[0].startswith("hf download") and len(lines) == 7
    for line in lines[1:]:
        words = shlex.split(line)[1:]
        if words[0] == "train":
            (data,) = blocks(text, "yaml")
            if "datasets:\n  mine" not in Path("llava.yaml").read_text():
                Path("llava.yaml").write_text(f"{data}{Path('llava.yaml').read_text()}")
            words += ["run.device=cpu", "run.num_workers=0"]
        if words[0] in ("chat", "verify"):
            words += ["--device", "cpu"]
        assert main(words) == 0, line
    said = capsys.readouterr().out
    assert "greedy ids: 4 of 4 answers are equal" in said
    assert f"{FOLDER}: the same as transformers" in said
    (python,) = blocks(text, "python")
    exec(compile(python, str(GUIDE), "exec"), {})  # noqa: S102
    assert any("lora_A" in name for name, _ in Engine.load("output/lora", "cpu").model.named_parameters())
