"""Every user's fault at the command line: exit code 2, one clear error on stderr, no traceback."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from vlm.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
CASE = ROOT / "tests" / "golden" / "minigpt4" / "open"
OTHER = CASE / "llama2_concat4"


@pytest.fixture
def config(tmp_path: Path) -> dict:
    """The small published composition with its data, as written in a YAML file."""
    text = (ROOT / "tests" / "equivalence" / "tiny.yaml").read_text().replace("DATA", str(CASE))
    data = yaml.safe_load(text)
    data["run"].update(output_dir=str(tmp_path / "run"), max_steps=2, num_workers=0, device="cpu")
    return data


def run(folder: Path, config: dict, capsys: pytest.CaptureFixture, *command: str, options: tuple[str, ...] = ()) -> str:
    """Run ``vlm COMMAND --cfg-path FILE``; the error text of a failed command."""
    file = folder / "fault.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    arguments = [*(command or ("train",)), "--cfg-path", str(file), *(("--options", *options) if options else ())]
    code = main(arguments)
    err = capsys.readouterr().err
    assert code == 2, f"exit code {code}: {err}"
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    return err[err.index("error: ") :]


def put(config: dict, path: str, value: object) -> None:
    """Set ``a.b.0.c`` in nested dicts and lists."""
    *parents, last = path.split(".")
    for key in parents:
        config = config[int(key) if key.isdigit() else key]
    config[last] = value


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("modle", "model"),
        ("model.visoin", "vision"),
        ("model.vision.detph", "depth"),
        ("model.bridge.0.num_query_token", "num_query_tokens"),
        ("model.llm.lora_", "lora"),
        ("datasets.cc_sbu_align.batch_sise", "batch_size"),
        ("datasets.cc_sbu_align.build_info.storag", "storage"),
        ("run.warmup_stepz", "warmup_steps"),
    ],
)
def test_misspelt_keys(tmp_path: Path, config: dict, capsys: pytest.CaptureFixture, path: str, near: str) -> None:
    put(config, path, 3)
    error = run(tmp_path, config, capsys)
    assert path.split(".")[-1] in error
    assert near in error
    assert "fault.yaml:" in error


def test_all_problems_are_reported_together(tmp_path: Path, config: dict, capsys: pytest.CaptureFixture) -> None:
    put(config, "run.max_steps", "many")
    put(config, "run.warmup_stepz", 3)
    put(config, "model.vision.depth", "deep")
    put(config, "model.weights.0.path", "nowhere.pth")
    error = run(tmp_path, config, capsys)
    assert all(word in error for word in ("many", "warmup_stepz", "deep", "nowhere.pth")), error


def test_value_left_open(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = {
        "model": {"arch": "minigpt4", "model_type": "pretrain_vicuna0"},
        "datasets": {"cc_sbu_align": {"batch_size": 2, "build_info": {"storage": str(CASE / "data" / "cc_sbu_align")}}},
        "run": {"task": "image_text_pretrain", "output_dir": str(tmp_path / "run")},
    }
    error = run(tmp_path, config, capsys)
    assert "llama_model" in error
    assert "icuna" in error, "says what belongs there"


def fault_missing_file(config: dict, folder: Path) -> str:
    put(config, "model.weights.0.path", str(folder / "eva.pth"))
    return "eva.pth"


def fault_wrong_checkpoint(config: dict, folder: Path) -> str:
    config["model"]["weights"].append({"format": "trained", "path": str(OTHER / "checkpoint.pth")})
    return "checkpoint.pth"


def fault_other_width(config: dict, folder: Path) -> str:
    put(config, "model.llm.path", str(OTHER / "llm"))
    for weight in config["model"]["weights"]:
        if weight["format"] == "hf_llm":
            weight["path"] = str(OTHER / "llm")
    config["model"]["weights"].append({"format": "trained", "path": str(CASE / "checkpoint.pth")})
    return "width"


def fault_corrupt_image(config: dict, folder: Path) -> str:
    data = folder / "data"
    shutil.copytree(CASE / "data" / "cc_sbu_align", data)
    for image in (data / "image").iterdir():
        image.write_bytes(image.read_bytes()[:60])
    put(config, "datasets.cc_sbu_align.build_info.storage", str(data))
    return "jpg"


def fault_empty_dataset(config: dict, folder: Path) -> str:
    (folder / "data" / "image").mkdir(parents=True)
    (folder / "data" / "filter_cap.json").write_text(json.dumps({"annotations": []}))
    put(config, "datasets.cc_sbu_align.build_info.storage", str(folder / "data"))
    return "dataset cc_sbu_align is empty"


def fault_nan_loss(config: dict, folder: Path) -> str:
    config["run"].update(init_lr=1e20, warmup_steps=0, max_steps=50)
    return "not a number"


class Boom:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("boom"),))


def fault_pickle_with_code(config: dict, folder: Path) -> str:
    file = folder / "evil.pth"
    torch.save({"model": Boom()}, file, pickle_module=pickle)
    config["model"]["weights"].append({"format": "trained", "path": str(file)})
    return "evil.pth"


def fault_truncated_weights(config: dict, folder: Path) -> str:
    file = folder / "eva.pth"
    file.write_bytes((CASE / "eva_vit_g.pth").read_bytes()[:2000])
    put(config, "model.weights.0.path", str(file))
    return "eva.pth"


@pytest.mark.parametrize(
    "fault",
    [
        fault_missing_file,
        fault_wrong_checkpoint,
        fault_other_width,
        fault_corrupt_image,
        fault_empty_dataset,
        fault_nan_loss,
        fault_pickle_with_code,
        fault_truncated_weights,
    ],
    ids=lambda f: f.__name__.removeprefix("fault_"),
)
def test_faults_of_training(
    tmp_path: Path,
    config: dict,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[dict, Path], str],
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = fault(config, tmp_path)
    error = run(tmp_path, config, capsys)
    assert expected in error, error
    assert not Path("boom").exists(), "the pickle's code ran"


def test_chat_without_mark_or_with_a_broken_image(tmp_path: Path, config: dict, capsys: pytest.CaptureFixture) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    file = tmp_path / "chat.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in config.items() if k == "model"}))
    code = main(["chat", str(file), "--image", str(broken), "--ask", "What is it?", "--allow-random"])
    captured = capsys.readouterr()
    assert code == 2
    assert "broken.png" in captured.err
    assert "Traceback" not in captured.err


def test_port_in_use(tmp_path: Path, config: dict, capsys: pytest.CaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file = tmp_path / "page.yaml"
        file.write_text(yaml.safe_dump({k: v for k, v in config.items() if k == "model"}))
        code = main(["demo", "--cfg-path", str(file), "--host", "127.0.0.1", "--port", str(port)])
    captured = capsys.readouterr()
    assert code == 2
    assert str(port) in captured.err
    assert "Traceback" not in captured.err


def test_prompt_file_without_image_mark(tmp_path: Path, config: dict, capsys: pytest.CaptureFixture) -> None:
    pool = tmp_path / "prompts.txt"
    pool.write_text("Describe this image.\n")
    config["model"]["template"] = {"name": "vicuna0", "prompt_path": str(pool)}
    error = run(tmp_path, config, capsys)
    assert "<ImageHere>" in error
    assert "prompts.txt" in error


def test_more_marks_than_images(tmp_path: Path, config: dict, capsys: pytest.CaptureFixture) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    turns = [{"from": "human", "value": "<image>\n<image>\nwhat?"}, {"from": "gpt", "value": "black"}]
    (tmp_path / "talk.json").write_text(json.dumps([{"id": "two", "image": "a.png", "conversations": turns}]))
    config["datasets"] = {
        "talk": {
            "format": "conversation_json",
            "batch_size": 1,
            "build_info": {"ann_path": str(tmp_path / "talk.json"), "image_path": str(tmp_path)},
        }
    }
    error = run(tmp_path, config, capsys)
    assert "two" in error
    assert "2" in error
    assert "1" in error
