"""Where numbers go: full precision on disk, means on screen."""

import io
import json
import logging
import sys
import types

import pytest

from vlm.common.errors import ConfigError, UserError
from vlm.runners.train import trackers
from vlm.runners.train.trackers import RunInfo, duration, open_trackers, read_log


def record(step, **changes):
    base = {
        "kind": "train", "step": step, "epoch": 0, "loss": 1 / 3, "lr": 1e-5 / 3, "grad_norm": 2.0, "targets": 10,
        "tokens": 50, "samples": 4, "seconds": 0.5, "data_seconds": 0.1, "memory_mib": 100.0, "skipped": 0,
    }  # fmt: skip
    return {**base, **changes}


def info(path, **changes):
    return RunInfo(**{"path": path, "name": "run", "total_steps": 4, "log_freq": 2, **changes})


def test_jsonl_keeps_every_step_with_full_precision(tmp_path):
    (tracker,) = open_trackers(["jsonl", "jsonl"], info(tmp_path))
    tracker.log(record(1))
    tracker.log({"kind": "valid", "step": 1, "loss": 2 / 3})
    tracker.close()
    assert read_log(tmp_path / "log.jsonl") == [record(1), {"kind": "valid", "step": 1, "loss": 2 / 3}]


def test_window_mean_weighs_the_loss_by_tokens(tmp_path):
    seen = []

    class Keep(trackers.WindowTracker):
        def write(self, record):
            seen.append(record)

    keep = Keep(info(tmp_path))
    keep.log(record(1, loss=1.0, targets=10, seconds=1.0))
    keep.log(record(2, loss=4.0, targets=20, seconds=3.0, grad_norm=4.0))
    keep.log(record(3, loss=9.0))
    keep.log({"kind": "valid", "step": 3, "loss": 5.0})
    keep.log(record(4, loss=7.0))
    first, valid, second = seen
    assert first["loss"] == pytest.approx(3.0) and first["grad_norm"] == 3.0 and first["step"] == 2
    assert first["samples_per_s"] == pytest.approx(8 / 4) and first["tokens_per_s"] == pytest.approx(100 / 4)
    assert valid["loss"] == 5.0 and second["loss"] == pytest.approx(8.0)


def test_tensorboard_files_hold_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(["tensorboard"], info(tmp_path))
    for step in (1, 2):
        tracker.log(record(step))
    tracker.log({"kind": "valid", "step": 2, "loss": 0.25})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Scalars("train/loss")[0].value == pytest.approx(1 / 3)
    assert {"train/lr", "train/grad_norm", "train/samples_per_s", "train/memory_mib"} <= set(events.Tags()["scalars"])
    assert [(e.step, e.value) for e in events.Scalars("valid/loss")] == [(2, 0.25)]


def test_progress_without_terminal_is_one_line_per_window(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vlm"), "propagate", True)
    (tracker,) = open_trackers(["progress"], info(tmp_path))
    with caplog.at_level(logging.INFO, "vlm"):
        for step in (1, 2, 3):
            tracker.log(record(step))
        tracker.log({"kind": "valid", "step": 3, "loss": 0.5})
    tracker.close()
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 2 and "valid loss 0.5000" in lines[1]
    for part in ("step 2/4", "loss 0.3333", "lr 3.333e-06", "8.0 samples/s", "100 tokens/s", "data 20%", "eta"):
        assert part in lines[0]


def test_progress_shows_padding_shares_and_bad_records(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vlm"), "propagate", True)
    (tracker,) = open_trackers(["progress"], info(tmp_path))
    numbers = {"padding": 0.0251}
    for name, share, wanted in (("align", 0.3, 0.25), ("web/x", 0.7, 0.75)):
        numbers |= {f"data/{name}/share": share, f"data/{name}/wanted": wanted, f"data/{name}/bad": 2}
    with caplog.at_level(logging.INFO, "vlm"):
        tracker.log(record(1))
        tracker.log(record(2, **numbers))
        tracker.log(record(4, padding=0.5, **{"data/align/share": 1.0, "data/align/bad": 0}))
    first, second = (r.getMessage() for r in caplog.records)
    assert first.endswith("  padding 2.5%  data align 30.0% of 25.0%, web/x 70.0% of 75.0%  bad 4")
    assert second.endswith("  padding 50.0%")


def test_progress_on_a_terminal_is_a_bar(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    logger, handler = logging.getLogger("vlm"), logging.StreamHandler(screen)
    monkeypatch.setattr(logger, "handlers", [handler])
    (tracker,) = open_trackers(["progress"], info(tmp_path))
    assert handler.stream is not screen
    for step in (1, 2, 3, 4):
        tracker.log(record(step))
    logger.warning("a line between")
    tracker.close()
    assert "4/4" in screen.getvalue() and "samples/s" in screen.getvalue()
    assert "a line between\n" in screen.getvalue() and handler.stream is screen


def test_wandb_gets_config_and_scalars_and_goes_on_after_resume(tmp_path, monkeypatch):
    calls = []

    class Run:
        id = "abc"

        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finish")

    fake = types.ModuleType("wandb")
    fake.init = lambda **options: calls.append(options) or Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start in (0, 2):
        (tracker,) = open_trackers(["wandb"], info(tmp_path, start_step=start, config={"a": 1}))
        tracker.log(record(start + 2))
        tracker.close()
    assert calls[0]["id"] is None and calls[0]["config"] == {"a": 1} and calls[0]["project"] == "vlm"
    assert calls[1][0] == 2 and calls[1][1]["train/loss"] == pytest.approx(1 / 3)
    assert calls[2] == "finish" and calls[3]["id"] == "abc"


def test_missing_wandb_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"run\.wandb_log=false"):
        open_trackers(["wandb"], info(tmp_path))


def test_unknown_tracker(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'jsonl'"):
        open_trackers(["json"], info(tmp_path))


def test_cut_line_is_left_out_with_a_warning(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps(record(1)) + "\n" + '{"kind": "tr')
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1]
    assert read_log(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize("seconds, text", [(5, "0:05"), (125, "2:05"), (3723, "1:02:03"), (float("inf"), "0:00")])
def test_duration(seconds, text):
    assert duration(seconds) == text
