"""Packed rows train as single rows do, and a killed run goes on with the very batches that would have come."""

import json
import os
import random
import signal
import subprocess
import sys

import pytest
import torch

from vlm.checkpoint.load import load_model
from vlm.checkpoint.run_folder import RunDir, read_checkpoint
from vlm.common.types import Example
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.processors.collate import VisualTokens, collate
from vlm.processors.processor import build_processor

from .tiny import HERE
from .train_recorded import recorded

PACKING = "run.packing={max_tokens: 160, max_media: 3, open_rows: 4}"
NUMBERS = {"max_steps": 80, "save_freq": 6, "val_freq": 1000, "iters_per_epoch": 1000, "batch_size": 1, "keep_last": 0}


def unpack(batch):
    """The samples of packed rows as a batch of single rows."""
    names, examples = iter(batch.sample_ids), []
    for row, (ids, segments) in enumerate(zip(batch.ids, batch.segments, strict=True)):
        for number in range(1, int(segments.max()) + 1):
            here = segments == number
            own = [m for m in range(len(batch.media_row)) if batch.media_row[m] == row and here[batch.media_pos[m]]]
            media = [batch.pixels[m] for m in own]
            examples.append(Example(ids[here].tolist(), batch.labels[row][here].tolist(), media, next(names)))
    return collate(examples, 0)


def test_packed_loss_and_gradient_equal_unpacked(three):
    cfg = three.load("run", "model.llm.lora.dropout=0.0", PACKING, batch_size=3)
    model = load_model(cfg, device="cpu")
    processor = build_processor(cfg.model)
    visual = VisualTokens.of(model.visual_tokens)
    assert visual == VisualTokens(per_frame=5)
    loader = TrainLoader.from_config(
        cfg.datasets, processor, seed=1, packing=cfg.run.packing, batch_size=3, visual_tokens=visual
    )
    for _ in range(3):
        packed = next(loader)
        single = unpack(packed)
        assert packed.num_samples == len(single.ids) > 3
        assert model.prepare(packed).inputs_embeds.shape[1] <= 160
        found = []
        for batch in (packed, single):
            model.zero_grad()
            out = model(batch)
            (out.loss_sum / out.num_tokens).backward()
            grads = [p.grad.clone() for n, p in model.named_parameters() if n.startswith("bridge.1") or "lora" in n]
            found.append((out.loss_sum.item() / out.num_tokens, out.num_tokens, grads))
        (loss, count, grads), (loss2, count2, grads2) = found
        assert count == count2 and loss == pytest.approx(loss2, abs=1e-5)
        assert len(grads) > 2 and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads, grads2, strict=True))


def lines(file):
    return file.read_text().split() if file.exists() else []


@pytest.fixture
def straight(three, monkeypatch):
    """Fingerprints of a run that is not interrupted."""
    file = three.folder / "straight.txt"
    with monkeypatch.context() as patch:
        patch.setattr(TrainLoader, "__next__", recorded(file))
        three.train("straight", PACKING, **NUMBERS)
    return lines(file)


def start_recorded(tiny, name, file, *more, **changes):
    """A run in another process whose batches are recorded, and which is killed after some step between 12 and 20.

    The first checkpoint, of step 6, is whole by then: batches are fetched ahead, and a busy disk takes its time.
    """
    batches = random.SystemRandom().randint(12, 20)
    command = [sys.executable, str(HERE / "train_recorded.py"), str(file), str(batches), str(tiny.config)]
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    options = [*tiny.options(name, **changes), *more]
    return subprocess.Popen([*command, *options], env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.heavy
def test_sigkill_and_resume_give_the_batches_of_a_straight_run(three, straight, monkeypatch):
    assert len(straight) == 80 and len(set(straight)) == 80
    runs = []
    for workers in (1, 2):
        file = three.folder / f"killed{workers}.txt"
        runs.append((workers, start_recorded(three, f"run{workers}", file, PACKING, num_workers=workers, **NUMBERS)))
    for _, process in runs:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == -signal.SIGKILL, said
    for workers, _ in runs:
        before = lines(three.folder / f"killed{workers}.txt")
        assert 12 <= len(before) < 80 and before == straight[: len(before)]
        run = RunDir(three.folder / f"run{workers}")
        step = run.steps()[-1]
        file = three.folder / f"resumed{workers}.txt"
        with monkeypatch.context() as patch:
            patch.setattr(TrainLoader, "__next__", recorded(file))
            three.train(f"run{workers}", PACKING, resume="auto", num_workers=workers, **NUMBERS)
        assert lines(file) == straight[step:] and len(lines(file)) >= 50
        (state,) = read_checkpoint(run.last())[1]["ranks"]
        assert len(json.dumps(state["loader"])) < 4096
    finals = [three.records(name)[-1] for name in ("straight", "run1", "run2")]
    assert all(f["padding"] == finals[0]["padding"] for f in finals)
    for key in ("data/second/samples", "data/shards/share", "data/cc_sbu_align/tokens", "loss"):
        assert finals[0][key] == finals[1][key] == finals[2][key] > 0
    assert finals[0]["data/second/wanted"] == 0.5
