"""The ``vlm`` command: subcommands, exit codes, one clear line for a user's fault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vlm.cli.main import main
from vlm.cli.train import Train, with_flags
from vlm.common.paths import asset
from vlm.common.registry import names

CFG = "model: {arch: minigpt4, model_type: pretrain_vicuna0, llama_model: %s}\nrun:\n  seed: 7\n"


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    (tmp_path / "llm").mkdir()
    (tmp_path / "cfg.yaml").write_text(CFG % (tmp_path / "llm"))
    return tmp_path / "cfg.yaml"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(name.split()[0] in out for name in names("command"))


@pytest.mark.parametrize("name", names("command"))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: vlm {name}" in out and re.search(rf"examples?:\n  (vlm|torchrun .*) {name}", out)


def test_unknown_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2
    assert "trian" in capsys.readouterr().err


def test_a_users_fault_is_one_message_and_code_2(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model: {arch: minigpt4}\nrun: {sed: 1}\n")
    done = subprocess.run(
        [sys.executable, "-m", "vlm.cli", "train", "--cfg-path", str(tmp_path / "bad.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "model.model_type" in done.stderr
    assert "did you mean 'seed'" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_reports_every_file(cfg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", str(cfg)]) == 2
    assert "no language model in" in capsys.readouterr().err
    cfg.write_text(CFG % asset("tiny/llm"))
    assert main(["config", "check", str(cfg)]) == 0
    assert capsys.readouterr().out == f"{cfg}: ok\n"
    assert main(["config", "check", str(cfg), "--options", "run.distributed=true"]) == 0
    assert "run.distributed has no effect here: decided by torchrun" in capsys.readouterr().out
    assert main(["config", "check", str(cfg), str(tmp_path / "none.yaml")]) == 2
    said = capsys.readouterr()
    assert "ok" in said.out
    assert "no such file" in said.err


def test_show_is_yaml_with_everything_resolved(cfg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", str(cfg), "--options", "run.log_freq=3"]) == 0
    text = capsys.readouterr().out
    shown = yaml.safe_load(text)
    assert shown["run"]["log_freq"] == 3
    assert shown["model"]["vision"]["image_size"] == 224
    assert "${" not in text


def test_show_origin_names_lines(cfg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", str(cfg), "--origin", "--options", "model.image_size=280"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"run.seed = 7  # {cfg}:3" in lines
    assert "run.beta2 = 0.999  # default" in lines
    assert "model.vision.image_size = 280  # --options model.image_size" in lines


def test_diff_against_defaults_and_another_file(cfg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "diff", str(cfg)]) == 0
    assert "run.seed: 42 -> 7" in capsys.readouterr().out.splitlines()
    other = tmp_path / "other.yaml"
    other.write_text(cfg.read_text().replace("seed: 7", "seed: 8"))
    assert main(["config", "diff", str(cfg), str(other)]) == 0
    assert capsys.readouterr().out == "run.seed: 7 -> 8\n"


def test_list_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "minigpt4/pretrain_vicuna0" in capsys.readouterr().out
    assert main(["list", "bridge"]) == 0
    assert any(line.startswith("qformer  ") for line in capsys.readouterr().out.splitlines())
    assert main(["list", "bridge", "qformer"]) == 0
    out = capsys.readouterr().out
    assert "vlm.models.bridges.qformer:" in out and "  num_query_tokens: int = 32\n" in out
    assert main(["list", "corpus", "ok_vqa"]) == 0
    assert "format: " in capsys.readouterr().out
    assert main(["list", "bridge", "qfromer"]) == 2
    assert "did you mean 'qformer'" in capsys.readouterr().err


def test_data_list_and_show(
    open_case: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "list"]) == 0
    assert "cc_sbu_align" in capsys.readouterr().out
    monkeypatch.chdir(open_case)
    assert main(["data", "show", "train.yaml", "-n", "1"]) == 0
    out = capsys.readouterr().out
    assert "cc_sbu_align (caption_folder, 5 samples)" in out
    assert "«▁The|▁red|▁boat" in out


def test_weights_show(open_case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "show", str(open_case / "checkpoint.pth")]) == 0
    assert "llama_proj.weight" in capsys.readouterr().out


def test_doctor_names_versions_and_folders(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_CACHE", "/some/cache")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out
    assert "/some/cache" in out
    for package in ("gradio", "fastapi", "uvicorn", "prometheus-client", "llguidance", "ray", "bitsandbytes"):
        assert f"\n  {package} " in out
    assert "\nint8 on the CPU: yes\n" in out or "\nint8 on the CPU: no (" in out


def test_eval_without_datasets_is_a_clear_error(cfg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(cfg)]) == 2
    assert "evaluation_datasets" in capsys.readouterr().err
    assert main(["eval"]) == 2
    assert "no run folder or configuration named" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--resume"], ["run.resume=auto"]),
        (["--resume", "out/x", "--overwrite"], ["run.resume=out/x", "run.overwrite=true"]),
        (["--options", "a.b=1", "--overwrite"], ["a.b=1", "run.overwrite=true"]),
        (["--options", "a.b", "1", "--resume"], ["a.b", "1", "run.resume", "auto"]),
        ([], []),
    ],
)
def test_training_flags_become_options(argv: list[str], expected: list[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    Train().add_arguments(parser)
    assert with_flags(parser.parse_args(["--cfg-path", "x", *argv])) == expected
