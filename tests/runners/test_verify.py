"""``vlm verify RUN|SYSTEM``: what training recorded is computed again, and what changed is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.cli.main import main
from vlm.common.errors import WeightsError
from vlm.inference.engine import Engine
from vlm.runners.verify.compare import verify as compare
from vlm.runners.verify.record import FILE, find_records, read_record

from ..equivalence.tiny import DATA, Tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = Tiny(tmp_path_factory.mktemp("tiny"))
    run: Path = tiny.train("run", report=True, report_samples=0, max_steps=1, trackers="[jsonl]").path
    return run


@pytest.fixture(scope="module")
def engine(trained: Path) -> Engine:
    return Engine.load(trained, "cpu")


def verify(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main(["verify", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out + said.err


def edited(run: Path, file: Path, change: Callable[[Any], object]) -> Path:
    record = json.loads((run / FILE).read_text())
    change(record)
    file.write_text(json.dumps(record))
    return file


def test_a_run_is_recorded_and_verified(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (trained / FILE).stat().st_size < 20_000
    code, text = verify(capsys, trained)
    assert code == 0 and "computes what was recorded" in text and "the same versions and machine" in text
    assert "greedy ids: 2 of 2" in text


@pytest.mark.parametrize(
    "change, code, said",
    [
        (lambda r: r["versions"].update(torch="1.0"), 0, ["torch: 1.0 when it was recorded"]),
        (
            lambda r: (r["versions"].update(torch="1.0", pillow="2"), r["cases"][0]["logits"][0].__setitem__(0, 99.0)),
            1,
            ["the model differs first; what changed there: torch (1.0 -> "],
        ),
        (
            lambda r: (r["versions"].update(tokenizers="0.1"), r["cases"][1]["prompt"].append(5)),
            1,
            ["ids of the prompts: 1 of 2", "tokenisation differs first; what changed there: tokenizers (0.1 -> "],
        ),
        (
            lambda r: (r["versions"].update(pillow="2"), r["cases"][0]["pixels"]["values"].__setitem__(0, 9.0)),
            1,
            ["image preprocessing differs first; what changed there: pillow (2 -> "],
        ),
        (lambda r: r["cases"][0]["pixels"].update(shape=[1]), 1, ["differs though no version does"]),
        (lambda r: r["cases"][0].update(ids=[7, 7, 7], gaps=[9.0] * 3, logits=[[0.0] * 32] * 3), 1, ["1 of 2 answers"]),
        (lambda r: r.update(dtypes=[[]]), 2, ["damaged, or of another model (TypeError"]),
        (lambda r: r.update(format=0), 2, ["not a record of `vlm verify`"]),
        (lambda r: r["cases"][0].pop("gaps"), 2, ["not a record of `vlm verify`"]),
        (lambda r: r["cases"][0].update(ids=["x"]), 2, ["damaged, or of another model (ValueError"]),
        (lambda r: r["cases"][0].update(logits="x"), 2, ["damaged, or of another model"]),
        (
            lambda r: r["weights"].update(llm={"sample": {"a": 1}}),
            2,
            ["record.json: the fingerprint of llm is damaged"],
        ),
    ],
)
def test_what_changed_is_named(
    trained: Path, tmp_path: Path, engine: Engine, change: Any, code: int, said: list[str]
) -> None:
    file = edited(trained, tmp_path / "record.json", change)
    if code == 2:
        with pytest.raises(WeightsError, match=re.escape(said[0])):
            compare(engine, read_record(file), file)
        return
    found = compare(engine, read_record(file), file)
    text = "\n".join([*found.lines(), "" if found.same else found.cause()])
    assert found.same == (code == 0), text
    assert all(part in text for part in said), text


def test_other_weights(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm = Path(shutil.copytree(DATA / "llm", tmp_path / "llm"))
    from vlm.checkpoint.safe import read_folder

    tensors = {name: tensor.clone().mul_(1.3) for name, tensor in read_folder(llm).items()}
    for file in [*llm.glob("*.bin*"), *llm.glob("*.safetensors*")]:
        file.unlink()
    save_file(tensors, llm / "model.safetensors")
    code, text = verify(capsys, trained, "--options", f"model.weights.2.path={llm}")
    assert code == 2 and "was trained with other frozen weights (llm: " in text
    code, text = verify(capsys, trained, "--options", f"model.weights.2.path={llm}", "run.allow_other_base=true")
    assert code == 1 and "DIFFERS: the weights of llm are others" in text
    copy = Path(shutil.copytree(trained, tmp_path / "copy", symlinks=True))
    weights = copy / "last" / "model.safetensors"
    save_file({k: t + 0.1 for k, t in load_file(weights).items()}, weights, metadata={"format": "pt", "step": "1"})
    for file in copy.glob("checkpoints/*/checksums.json"):
        file.unlink()
    code, text = verify(capsys, copy)
    assert code == 1 and "the weights of bridge.1, llm are others" in text
    assert verify(capsys, copy, "--record")[0] == 0
    assert verify(capsys, copy)[0] == 0


def test_systems_and_other_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = verify(capsys, "tiny", "--device", "cpu")
    assert code == 0, text
    assert [file.is_file() for _, file in find_records("tiny")] == [True]
    file = tmp_path / "mine.json"
    command = ["tiny/minigpt4", "--file", file, "--device", "cpu"]
    assert verify(capsys, *command, "--record")[0] == 2
    assert verify(capsys, *command, "--record", "--allow-random") == (0, f"{file}: recorded\n")
    code, text = verify(capsys, *command, "--options", "model.template.system=Hello")
    assert code == 1 and "tokenisation" in text


@pytest.mark.parametrize(
    "words, said",
    [
        (["tinny"], "unknown run folder or system 'tinny'; did you mean 'tiny'"),
        (["lynx"], "lynx: nothing is recorded of it"),
        (["tiny", "--record"], "is not a run folder, which could hold its record"),
        (["tiny", "--against", "transformers", "--record"], "--against and --record exclude each other"),
        (["EMPTY"], "nothing is recorded of it"),
    ],
)
def test_wrong_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    code, text = verify(capsys, *(str(tmp_path) if word == "EMPTY" else word for word in words))
    assert code == 2 and said in text


def test_half_precision_has_its_own_tolerance(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = verify(capsys, trained, "--dtype", "bf16", "--device", "cpu")
    assert "(allowed 0.15)" in text and code == 0, text
    assert torch.get_default_dtype() is torch.float32
