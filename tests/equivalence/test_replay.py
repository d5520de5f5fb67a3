"""A step that is replayed from its run folder is the step of the run, bit for bit."""

import json
import logging
import math
import shutil

import pytest

from vlm.cli.main import main
from vlm.common.errors import UserError
from vlm.runners.replay.found import find_run, find_start
from vlm.runners.replay.run import replay

from .tiny import DATA

PACKING = "run.packing={max_tokens: 120, open_rows: 3}"


def files_of(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.heavy
def test_a_plain_run_and_what_is_shown_of_it(tiny):
    """Dropout, validation on the way, LoRA; from a checkpoint, from the beginning, and from the weights as they are."""
    tiny.train("run", accum_grad_iters=2, max_steps=5, save_freq=3, val_freq=2, max_grad_norm=1.0)
    folder, records = tiny.folder / "run", tiny.records("run")
    for improved in (2, 4):
        shutil.rmtree(folder / "checkpoints" / f"step_0000000{improved}", ignore_errors=True)
    before = files_of(folder)
    found = {step: replay(folder, step) for step in (1, 3, 5)}
    for step, one in found.items():
        assert one.loss.equal and one.loss.replayed == records[step - 1]["loss"]
        assert one.grad_norm.equal and one.grad_norm.replayed == records[step - 1]["grad_norm"]
        assert math.hypot(*one.parts.values()) == pytest.approx(one.grad_norm.replayed, rel=1e-5)
    assert [one.trained for one in found.values()] == [0, 2, 1] and found[5].start.endswith("step_00000003")
    one = found[5]
    assert set(one.parts) == {"bridge.1", "llm lora"} and one.counts["samples"] == 4
    assert [(b.rank, b.number, len(b.samples)) for b in one.batches] == [(0, 1, 2), (0, 2, 2)]
    for batch in one.batches:
        assert batch.loss_sum == pytest.approx(sum(s.loss_sum for s in batch.samples), rel=1e-5)
        for sample in batch.samples:
            assert sample.dataset == "cc_sbu_align" and str(DATA) in sample.media[0] and sample.images
            assert (
                sample.targets
                == sum(t.loss is not None for t in sample.tokens)
                == sum(t.trained for t in sample.tokens)
            )
    assert sum(s.loss_sum for b in one.batches for s in b.samples) / one.counts["targets"] == pytest.approx(
        one.loss.replayed, rel=1e-5
    )
    nearest = replay(folder, 5, weights="nearest")
    assert not nearest.exact and nearest.loss.equal is False and "step 3" in nearest.reasons[0]
    names = [[s.name for b in r.batches for s in b.samples] for r in (one, nearest)]
    assert names[0] == names[1]
    assert files_of(folder) == before


@pytest.mark.heavy
def test_a_packed_run(tiny):
    tiny.train("run", PACKING, max_steps=4, save_freq=2)
    tiny.train("global", global_batch=4, max_steps=4, save_freq=2)
    (first, second) = (replay(tiny.folder / "global", 4, weights=weights) for weights in ("exact", "nearest"))
    assert first.loss.equal and len(first.batches) == 2
    assert [s.name for _, s in first.samples] and {s.name for _, s in first.samples} == {
        s.name for _, s in second.samples
    }
    for step in (2, 4):
        found = replay(tiny.folder / "run", step)
        assert found.loss.equal and found.grad_norm.equal
        (batch,) = found.batches
        assert len(batch.samples) > 2 and all(s.targets and s.media for s in batch.samples)


@pytest.mark.heavy
def test_the_step_at_which_a_run_broke_off_and_bad_input(tiny, capsys, caplog, monkeypatch):
    """One message each; a step that is in no log can be looked at."""
    monkeypatch.chdir(tiny.folder)
    options = ["run.spike={window: 8, deviations: 1e-6}", "run.on_spike=stop"]
    with pytest.raises(UserError, match=r"is a spike: .*samples: ") as caught:
        tiny.train("run", *options, max_steps=40, save_freq=4, val_freq=100, init_lr=1e-3)
    folder, run = tiny.folder / "run", find_run(tiny.folder / "run")
    assert f"vlm replay {folder} --step {run.last + 1}" in str(caught.value)
    found = replay(folder, run.last + 1)
    told = [f"loss {found.loss.replayed:.4g}", f"gradient norm {found.grad_norm.replayed:.4g}"]
    assert found.loss.equal is None and any(text in str(caught.value) for text in told)
    faults = {
        f"has no step {run.last + 2}": [folder, "--step", str(run.last + 2)],
        "is not a run folder": [tiny.folder / "none", "--step", "1"],
        "it has no config.yaml": [tiny.folder, "--spikes"],
        "was computed by 1 process\n": [folder, "--step", "1", "--rank", "1"],
        "name either --step N or --spikes": [folder],
    }
    for text, arguments in faults.items():
        assert main(["replay", *map(str, arguments)]) == 2
        assert text in capsys.readouterr().err
    caplog.set_level(logging.WARNING)
    page = tiny.folder / "mine.txt"
    page.write_text("notes")
    assert main(["replay", str(folder), "--step", "1", "--output", str(page)]) == 2
    assert "was not written by this command" in capsys.readouterr().err and page.read_text() == "notes"


@pytest.mark.heavy
def test_data_and_checkpoints_that_are_gone(tiny, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tiny.folder)
    data = shutil.copytree(DATA / "data" / "cc_sbu_align", tiny.folder / "data")
    storage = f"datasets.cc_sbu_align.build_info.storage={data}"
    tiny.train("run", storage, max_steps=4, save_freq=2)
    folder = tiny.folder / "run"
    shutil.rmtree(folder / "checkpoints" / "step_00000002")
    start = find_start(find_run(folder), 4)
    assert start.checkpoint is None and start.step == 0  # pruned: from the beginning
    weights = folder / "checkpoints" / "step_00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert replay(folder, 4).loss.equal and "damaged" not in caplog.text
    caption = next(data.rglob("*.json"))
    text = caption.read_text()
    caption.write_text(text.replace("a river", "a very broad and slow river"))
    assert main(["replay", str(folder), "--step", "1"]) == 2
    assert "in the log" in (error := capsys.readouterr().err) and "--options datasets" in error
    shutil.move(data, tiny.folder / "moved")
    assert main(["replay", str(folder), "--step", "1"]) == 2
    assert str(data) in (error := capsys.readouterr().err) and error.count("error:") == 1 and "--options" in error
    moved = storage.replace(str(data), str(tiny.folder / "moved"))
    caption = tiny.folder / "moved" / caption.relative_to(data)
    caption.write_text(text)
    assert replay(folder, 1, options=[moved]).loss.equal
    assert main(["replay", str(folder), "--spikes"]) == 2 and "too few" in capsys.readouterr().err


@pytest.mark.heavy
def test_two_processes_are_replayed_in_one(tiny, capsys):
    """From the beginning, from a checkpoint, after a change of the number of processes; one rank alone."""
    numbers = {"accum_grad_iters": 2, "save_freq": 3, "val_freq": 100, "keep_last": 0}
    process = tiny.start("run", PACKING, processes=2, max_steps=6, **numbers)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    folder = tiny.folder / "run"
    found = {step: replay(folder, step) for step in (2, 5)}
    assert all(one.loss.equal and one.grad_norm.equal and one.processes == 2 for one in found.values())
    assert sorted({b.rank for b in found[5].batches}) == [0, 1]
    own = replay(folder, 5, rank=1)
    assert own.loss.equal and {b.rank for b in own.batches} == {1}
    assert main(["replay", str(folder), "--step", "5", "--rank", "2"]) == 2
    assert "was computed by 2 processes" in capsys.readouterr().err
    tiny.train("run", PACKING, resume="auto", max_steps=8, **numbers)
    assert replay(folder, 8).loss.equal and find_start(find_run(folder), 5).processes == 2


@pytest.mark.heavy
def test_the_command_writes_a_page_and_numbers(tiny, capsys, monkeypatch):
    data = shutil.copytree(DATA / "data" / "cc_sbu_align", tiny.folder / "data")
    for caption in data.rglob("*.json"):
        caption.write_text(caption.read_text().replace('caption": "', 'caption": "<script>alert(1)</script> '))
    tiny.train("run", f"datasets.cc_sbu_align.build_info.storage={data}", max_steps=1, val_freq=100)
    monkeypatch.chdir(tiny.folder)
    assert main(["replay", "run", "--step", "1", "--output", "page.html", "--json", "step.json"]) == 0
    text, out = (tiny.folder / "page.html").read_text(), capsys.readouterr().out
    assert "equal to the log bit for bit" in out and "equal to the log bit for bit" in text
    assert "<script>" not in text and text.count("<img ") == 2 and "http" not in text
    values = json.loads((tiny.folder / "step.json").read_text())
    assert values["loss"]["equal"] is True and values["loss"]["difference"] == 0
    (batch,) = values["micro_batches"]
    losses = [t["loss"] for s in batch["samples"] for t in s["tokens"] if t.get("loss") is not None]
    assert sum(losses) / len(losses) == pytest.approx(values["loss"]["replayed"], rel=1e-5)
