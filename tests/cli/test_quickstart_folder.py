"""The quickstart replaces what a quickstart wrote, and nothing else."""

from pathlib import Path

import pytest

from vlm.checkpoint.run_files import MANIFEST
from vlm.cli.main import main
from vlm.cli.quickstart import DRAWN, clear_drawn
from vlm.common.errors import UserError
from vlm.config.api import load_config

OURS = ("shards/00000.tar", "images/00000001.png", "images/seen/000001.png", "seen.jsonl", "dialogues.json")


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


@pytest.mark.parametrize("names", [("data/mine.jsonl",), ("results.json",), ("data/images/00000001.png",)])
def test_another_programs_folder_is_left_alone(tmp_path: Path, names: tuple[str, ...]) -> None:
    fill(tmp_path / "out", *names)
    with pytest.raises(UserError, match="that no quickstart wrote; nothing was changed"):
        clear_drawn(tmp_path / "out")
    assert (tmp_path / "out" / names[0]).read_text() == "x"


def test_what_was_drawn_goes_and_what_was_added_stays(tmp_path: Path) -> None:
    clear_drawn(tmp_path)
    fill(tmp_path / "data", *OURS, "images/cat.png", "mine.jsonl")
    clear_drawn(tmp_path)
    left = {p.name for p in (tmp_path / "data").rglob("*") if p.is_file()}
    assert left == {DRAWN, "cat.png", "mine.jsonl"}


def test_a_quickstart_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    fill(tmp_path / "data", *OURS)
    fill(tmp_path, "stage1/checkpoints/step_00000001/model.safetensors", "stage2/notes.txt", "results.json")
    clear_drawn(tmp_path)
    assert (tmp_path / "stage1" / MANIFEST).is_file() and not (tmp_path / "stage2" / MANIFEST).exists()


def test_places_that_are_not_for_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--output="):
        clear_drawn(Path("."))


def test_the_data_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``--data-only`` draws what a study trains on, and trains nothing; without it the message names the command."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="quickstart --data-only"):
        load_config("tiny/stage2_finetune", ["model.ckpt="], check="all")
    assert main(["quickstart", "--data-only", "--scale", "0.001"]) == 0
    folder = tmp_path / "output" / "quickstart"
    assert sorted(path.name for path in folder.iterdir()) == ["data"]
    for name, rows in {"seen": 8, "unseen": 8, "three": 8}.items():
        assert len((folder / "data" / f"{name}.jsonl").read_text().splitlines()) == rows
    assert load_config("tiny/stage2_finetune", ["model.ckpt="], check="all").datasets["tiny_dialogues"]
    assert "output/quickstart/data" in capsys.readouterr().out
