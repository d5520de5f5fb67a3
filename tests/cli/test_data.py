"""``vlm data``: what it finds, what it says, its exit codes."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vlm.cli.data import command
from vlm.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
CASE = ROOT / "tests" / "golden" / "minigpt4" / "open"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The captions of the published case, to be changed."""
    shutil.copytree(CASE / "data" / "cc_sbu_align", tmp_path / "captions")
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture) -> Run:
    """``run("check", "--out", D)`` -> exit code, stdout, stderr of ``vlm data check CONFIG --out D``."""

    def go(action: str, *arguments: str, **datasets: dict) -> tuple[int, str, str]:
        config = yaml.safe_load((ROOT / "tests/equivalence/tiny.yaml").read_text().replace("DATA", str(CASE)))
        config.pop("valid_datasets")
        own = {"format": "caption_folder", "batch_size": 2, "build_info": {"storage": str(folder / "captions")}}
        config["datasets"] = datasets or {"mine": own}
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        code = main(["data", action, str(file), *arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return go


def captions(folder: Path) -> tuple[Path, dict]:
    file = folder / "captions" / "filter_cap.json"
    return file, json.loads(file.read_text())


def test_check_of_good_data(run: Run, folder: Path) -> None:
    code, out, err = run("check", "--out", str(folder / "report"))
    assert (code, err) == (0, "")
    assert "mine (caption_folder)\n  samples      5 usable, 0 bad, 0 of them lack a file\n" in out
    assert re.search(r"length       mean \d+  p5 \d+  p50 \d+ .*positions in the LLM", out)
    assert re.search(r"padding      as they come \S+, grouped by length \S+, packed \S+  \(batches of 2\)", out)
    found = json.loads((folder / "report" / "check.json").read_text())["mine"]
    assert (found["samples"], found["unit"], found["bad"]) == (5, "tokens", 0)
    assert (folder / "report" / "quarantine.jsonl").read_text() == ""


def test_check_counts_the_lengths_that_training_has(run: Run, folder: Path) -> None:
    """Ids with one place per medium, plus the visual tokens of the composition: 5 per image."""
    run("check", "--out", str(folder / "blind"))
    run("check", "--pixels", "--out", str(folder / "full"), "-j", "2")
    blind, full = (json.loads((folder / n / "check.json").read_text())["mine"] for n in ("blind", "full"))
    assert {**blind, "seconds": 0} == {**full, "seconds": 0}
    _, out, _ = run("show", "-n", "5")
    shown = [int(n) for n in re.findall(r": (\d+) positions", out)]
    assert max(shown) == blind["length"]["max"]


def test_check_finds_what_cannot_be_used(run: Run, folder: Path) -> None:
    file, tree = captions(folder)
    del tree["annotations"][0]["caption"]
    file.write_text(json.dumps(tree))
    (folder / "captions" / "image" / f"{tree['annotations'][1]['image_id']}.jpg").unlink()
    code, out, err = run("check")
    assert code == 0, "two bad records never stop a run"
    assert "3 usable, 2 bad, 1 of them lack a file" in out
    assert "1 x no file …" in out and "no field" in out
    broken = folder / "captions" / "image" / f"{tree['annotations'][2]['image_id']}.jpg"
    broken.write_bytes(broken.read_bytes()[:60])
    assert run("check")[0] == 0, "pixels are not read"
    code, out, err = run("check", "--pixels", "--out", str(folder / "report"))
    assert code == 2
    assert "error: dataset mine: 3 of 5 records cannot be used, allowed are 1.0%" in err
    assert f"fix: repair the data or its build_info; see {folder}/report/quarantine.jsonl" in err
    lines = [json.loads(line) for line in (folder / "report" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["source"], line["key"]) for line in lines] == [("mine", "0"), ("mine", "1"), ("mine", "2")]


def test_check_goes_on_after_a_dataset_that_cannot_be_opened(run: Run, folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "filter_cap.json").write_text('{"annotations": []}')

    def entry(name: str) -> dict:
        return {"format": "caption_folder", "build_info": {"storage": str(folder / name)}}

    code, out, err = run("check", gone=entry("gone"), empty=entry("empty"), mine=entry("captions"))
    assert code == 2
    assert "5 usable" in out and "cannot be opened: caption_folder: no file" in out
    assert "dataset gone cannot be opened" in err and "dataset empty: 0 records" in err
    assert err.count("error: ") == 1 and "list all bad records with --out DIR" in err


def test_check_without_the_llm_counts_characters(run: Run) -> None:
    code, out, _ = run("check", "--options", "model.llm.path=/nowhere", "model.weights=[]")
    assert code == 0
    assert out.startswith("no tokens, only characters: tokenizer folder /nowhere: no such folder\n")
    assert "characters of text" in out and "padding" not in out


def test_check_names_what_is_not_set(run: Run, folder: Path) -> None:
    own = {"format": "caption_folder", "build_info": {"storage": str(folder / "captions")}}
    code, out, _ = run("check", "--limit", "2", mine=own, later={**own, "build_info": {"storage": "???"}})
    assert code == 0
    assert "skipped because build_info is not set: later" in out
    assert "2 usable, 0 bad, 0 of them lack a file (the first 2 records only)" in out


def test_only_needs_a_dataset_of_the_file(run: Run) -> None:
    assert "--only yours: no such dataset\n  fix: use one of mine" in run("check", "--only", "yours")[2]
    assert run("check", "--only", "mine")[0] == 0


def test_check_says_where_it_cannot_write(run: Run, folder: Path) -> None:
    (folder / "file").write_text("")
    code, _, err = run("check", "--out", str(folder / "file"))
    assert code == 2 and "cannot be written" in err


def test_show_prints_the_tokens(run: Run) -> None:
    code, out, _ = run("show", "-n", "1")
    assert code == 0
    assert "mine (caption_folder, 5 samples)" in out
    assert "|[image 1: 5 tokens]|" in out and "«▁The|▁red|▁boat|▁stands|▁near|▁the|▁water|.|###»" in out
    assert str(Path("captions/image/2.jpg")) in out


def test_show_draws_by_seed(run: Run) -> None:
    seen = {run("show", "-n", "1", "--seed", str(seed))[1].splitlines()[1] for seed in range(6)}
    assert len(seen) > 1
    assert run("show", "-n", "9", "--seed", "3")[1] == run("show", "-n", "9", "--seed", "3")[1]


def test_show_without_the_llm_prints_the_messages(run: Run) -> None:
    _, out, _ = run("show", "-n", "1", "--options", "model.llm.path=/nowhere", "model.weights=[]")
    assert "assistant: 'The red boat stands near the water.'" in out


def test_show_goes_on_after_a_bad_record(run: Run, folder: Path) -> None:
    (folder / "captions" / "image" / "2.jpg").unlink()
    code, out, _ = run("show", "-n", "2")
    assert code == 0
    assert "0: cannot be used: image" in out and re.search(r"3: \d+ positions", out)


def test_show_writes_a_page(run: Run, folder: Path) -> None:
    code, out, _ = run("show", "-n", "5", "--html", str(folder / "s.html"))
    text = (folder / "s.html").read_text(encoding="utf-8")
    assert code == 0 and "written: " in out
    assert text.count("data:image/jpeg;base64,") == 5 and text.count("<article>") == 5
    assert run("show", "-n", "1", "--html", str(folder / "s.html"))[0] == 0  # our own page is replaced
    (folder / "notes.html").write_text("mine")
    for name, why in (("notes.html", "not written by this command"), ("notes.html/s.html", "cannot be made")):
        code, _, err = run("show", "--html", str(folder / name))
        assert code == 2 and why in err and (folder / "notes.html").read_text() == "mine"


def test_only_unfinished_shards_of_ours_are_deleted(run: Run, folder: Path) -> None:
    out = folder / "out" / "mine"
    out.mkdir(parents=True)
    for name in ("00000.12.part", "video.mp4.part"):
        (out / name).write_text("x")
    assert run("shard", str(folder / "out"))[0] == 0 and (out / "00000.12.part").exists()  # from before the manifest
    (out / "00009.12.part").write_text("x")
    assert run("shard", str(folder / "out"))[0] == 0
    assert [p.name for p in out.glob("*.part")] == ["video.mp4.part"]


def test_check_replaces_only_its_own_results(run: Run, folder: Path) -> None:
    assert run("check", "--out", str(folder / "r"))[0] == run("check", "--out", str(folder / "r"))[0] == 0
    for name in ("check.json", "quarantine.jsonl"):
        (folder / "r" / name).write_text("mine")
        assert run("check", "--out", str(folder / "r"))[0] == 2 and (folder / "r" / name).read_text() == "mine"
        (folder / "r" / name).unlink()


def test_show_of_unusable_datasets(run: Run, folder: Path) -> None:
    gone = {"format": "caption_folder", "build_info": {"storage": str(folder / "gone")}}
    assert "dataset gone cannot be opened: caption_folder: no file" in run("show", gone=gone)[2]
    (folder / "captions" / "filter_cap.json").write_text('{"annotations": []}')
    assert "dataset mine is empty" in run("show")[2]


def test_shards_train_as_the_dataset_did(run: Run, folder: Path) -> None:
    code, out, _ = run("shard", str(folder / "out"), "--per-shard", "2", "-j", "2")
    assert code == 0
    assert "mine: 5 samples in 3 shards" in out
    entry = yaml.safe_load(out[out.index("datasets:") :])["datasets"]["mine"]
    assert (entry["format"], entry["batch_size"]) == ("web_shards", 2)
    run("check", "--out", str(folder / "a"))
    run("check", "--out", str(folder / "b"), mine=entry)
    one, two = (json.loads((folder / n / "check.json").read_text())["mine"] for n in "ab")
    assert {k: one[k] for k in ("samples", "targets", "media")} == {k: two[k] for k in ("samples", "targets", "media")}
    gone = {"format": "caption_folder", "build_info": {"storage": str(folder / "gone")}}
    assert "dataset gone cannot be opened" in run("shard", str(folder / "x"), gone=gone)[2]


def test_list_names_every_corpus(capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    for file in (ROOT / "vlm" / "configs" / "datasets").glob("*.yaml"):
        assert re.search(rf"^{re.escape(file.stem)} ", out, re.MULTILINE), file


def test_every_action_has_arguments() -> None:
    parser = argparse.ArgumentParser()
    command.Data().add_arguments(parser)
    assert parser.parse_args(["check", "x.yaml", "-j", "4"]).j == 4
    assert parser.parse_args(["shard", "x.yaml", "out", "--only", "a", "b"]).only == ["a", "b"]


def test_the_model_need_not_be_there_yet(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """A shipped file whose weights are not named: the data can be checked all the same."""
    file = str(ROOT / "train_configs" / "minigpt4_stage2_finetune.yaml")
    assert main(["data", "check", file]) == 2
    err = capsys.readouterr().err
    assert "no dataset can be opened; build_info is not set for cc_sbu_align" in err
    storage = f"datasets.cc_sbu_align.build_info.storage={folder / 'captions'}"
    assert main(["data", "check", file, "--options", storage]) == 0
    out = capsys.readouterr().out
    assert "no tokens, only characters: tokenizer folder not-set" in out and "5 usable" in out
    assert main(["data", "check", file, "--options", *storage.split("=")]) == 0
    assert main(["data", "check", file, "--options", storage, "model.imagesize=3"]) == 2
    assert "imagesize" in capsys.readouterr().err


def test_questions_without_answers_are_fine_for_evaluation_only(folder: Path, capsys: pytest.CaptureFixture) -> None:
    config = yaml.safe_load((ROOT / "tests/equivalence/tiny.yaml").read_text().replace("DATA", str(CASE)))
    (folder / "q.json").write_text(json.dumps([{"id": 5, "image": "image.png", "question": "What?"}]))
    info = {"ann_path": str(folder / "q.json"), "image_path": str(CASE), "assistant": None}
    entry = {"format": "table", "build_info": info}
    config |= {"evaluation_datasets": {"asked": entry}, "datasets": {"asked": entry}}
    config.pop("valid_datasets")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["data", "check", str(folder / "config.yaml"), "--only", "evaluation_asked"]) == 0
    assert "1 usable" in capsys.readouterr().out
    assert main(["data", "show", str(folder / "config.yaml"), "--only", "evaluation_asked"]) == 0
    assert "0 trained" in capsys.readouterr().out
    assert main(["data", "check", str(folder / "config.yaml")]) == 2
    captured = capsys.readouterr()
    assert "no supervised token" in captured.out and "none of 1 records can be used" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "x", "-j", "-1"),
        ("check", "x", "--limit", "0"),
        ("show", "x", "-n", "no"),
        ("shard", "x", "y", "--per-shard", "0"),
    ],
)
def test_numbers_are_checked(arguments: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", *arguments])
    assert caught.value.code == 2
    assert "expected an integer of at least " in capsys.readouterr().err
