"""Training step: this library against transformers' BLIP-2 with a LLaMA text model.

    python -m benchmarks.train_step                  # CPU middle size, float32 and bfloat16
    python -m benchmarks.train_step --cached --compile
    python -m benchmarks.train_step --size 7b        # on a GPU, random weights, bfloat16

Same sizes, weights, images and texts; forward, backward and AdamW step of the projection. Each side is a process of its
own, as a user would run it; the steps run in turns and the medians are compared. Both sides keep frozen parts frozen
and see new images at each step. ``--cached`` adds a side whose frozen visual features (of encoder and Q-Former) were
computed before, ``--compile`` one with ``run.compile``. The share of the matmul peak is the FLOPs of a step by its
time, over the fastest product of two 2048 x 2048 matrices.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import (
    SEVEN_B,
    SMALL,
    Sizes,
    alternate,
    baseline,
    baseline_inputs,
    forget_peak,
    make_rows,
    median,
    peak_resident,
    resident,
    write,
)
from benchmarks.ours import composition, copy_weights, make_batch
from vlm.runners.train.speed.compiled import compile_model
from vlm.runners.train.speed.flops import Counter
from vlm.runners.train.speed.peaks import peak

SIZES = {"small": SMALL, "cpu": Sizes(), "7b": SEVEN_B}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def their_step(model: Any, rows: list, pixels: torch.Tensor, s: Sizes, dtype: torch.dtype) -> Callable[[], float]:
    """One optimiser step of the baseline; returns the loss."""
    inputs = {k: v.to(pixels.device) for k, v in baseline_inputs(rows, s).items()}
    optimiser = torch.optim.AdamW(model.language_projection.parameters(), lr=0.0)

    def step() -> float:
        with torch.autocast(pixels.device.type, dtype, enabled=dtype is not torch.float32):
            loss = model(pixel_values=pixels, **inputs).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def our_step(
    model: Any, rows: list, pixels: torch.Tensor, dtype: torch.dtype, cached: bool = False
) -> Callable[[], float]:
    """One optimiser step of this library; returns the loss. ``cached``: all up to the projection is computed before."""
    batch = make_batch(rows, pixels.cpu()).to(pixels.device)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    model.train()
    autocast = torch.autocast(pixels.device.type, dtype, enabled=dtype is not torch.float32)
    if cached:
        *frozen, projection = model.bridge
        with torch.no_grad(), autocast:
            features = model.vision(batch.pixels)
            for part in frozen:
                features = part(features)
        model.__dict__["encode"] = lambda *media: projection(features)

    def step() -> float:
        with autocast:
            output = model(batch)
        loss = output.loss_sum / output.num_tokens
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def build_side(name: str, s: Sizes, batch: int, device: str) -> Callable[[], float]:
    """The step called ``name``: the library, fp32 or bf16, and for ours maybe ``cached`` or ``compile``."""
    library, precision, *more = name.split()
    torch.manual_seed(0)
    pixels = torch.randn(batch, 3, s.image_size, s.image_size, device=device)
    rows, dtype = make_rows(batch, s.vocab, seed=0), DTYPES[precision]
    theirs = baseline(s)
    if library == "transformers":
        if dtype is torch.bfloat16:  # both sides store frozen weights in bfloat16 and the projection in float32
            theirs = theirs.to(dtype)
            theirs.language_projection.float()
        return their_step(theirs.to(device), rows, pixels, s, dtype)
    ours = composition(s, precision)
    copy_weights(theirs, ours)
    del theirs
    ours = ours.to(device)
    if "compile" in more:
        compile_model(ours, pixels.device)
    return our_step(ours, rows, pixels, dtype, "cached" in more)


class Side:
    """A side in a process of its own, which does a step whenever it is asked to."""

    def __init__(self, name: str, size: str, batch: int, device: str) -> None:
        options = ["--size", size, "--batch", str(batch), "--device", device, "--serve", name]
        command = [sys.executable, "-m", "benchmarks.train_step", *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts: dict[str, float] = json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith("{"):
            if not line:
                raise RuntimeError(f"a side ended: {self.process.args}")
        return line

    def step(self) -> None:
        """One step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._line()

    def close(self) -> None:
        """End the process."""
        self.process.communicate("end\n")


def serve(name: str, size: str, batch: int, device: str) -> None:
    """What :class:`Side` talks to: the facts about a step, then a line for every line."""
    step = build_side(name, SIZES[size], batch, device)
    on_gpu = device != "cpu"
    with Counter() as counter:
        loss = step()
    facts = {"loss": loss, "gflop": round(counter.flops / 1e9, 3), "memory_mb": grown(step, on_gpu)}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        if line.strip():
            break
        step()
        if on_gpu:
            torch.cuda.synchronize()
        print("{}", flush=True)


def grown(step: Callable[[], float], on_gpu: bool) -> float:
    """MiB that two steps add to what is held before them, at their peak."""
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building and the first step freed would hide what the next ones add
    held = resident()
    forget_peak()  # building a model takes more than holding it
    step()
    step()
    return round(peak_resident() - held, 1)


def measure(size: str, batch: int, rounds: int, device: str, names: list[str]) -> dict[str, Any]:
    """Medians, ratios, losses, FLOPs and memory of every side at one size."""
    sides = {name: Side(name, size, batch, device) for name in names}
    try:
        seconds = alternate({name: side.step for name, side in sides.items()}, rounds)
    finally:
        for side in sides.values():
            side.close()
    medians = {name: median(values) for name, values in seconds.items()}
    facts = {key: {name: side.facts[key] for name, side in sides.items()} for key in ("loss", "gflop", "memory_mb")}
    kind = torch.device(device)
    peaks = {p: peak(kind, DTYPES[p]) / 1e9 for p in dict.fromkeys(name.split()[1] for name in names)}
    rates = {name: facts["gflop"][name] / medians[name] for name in names}
    return {
        "what": "training step (forward, backward, optimiser), only the projection trains",
        "size": size, "batch": batch, "rounds": rounds, "device": device, "loss": facts["loss"],
        "seconds_per_step": medians, "samples_per_second": {k: round(batch / v, 3) for k, v in medians.items()},
        f"ratio_to_{names[0].replace(' ', '_')}": {k: round(medians[names[0]] / v, 3) for k, v in medians.items()},
        "gflop_per_step": facts["gflop"],
        "matmul_peak_gflop_per_second": {k: round(v, 1) for k, v in peaks.items()},
        "share_of_matmul_peak": {k: round(rate / peaks[k.split()[1]], 3) for k, rate in rates.items()},
        "step_memory_mb": facts["memory_mb"],
        "all_seconds": seconds,
    }  # fmt: skip


def main() -> None:
    """Parse, measure, write ``benchmarks/results/train_step_<size>.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default=None)
    parser.add_argument("--cached", action="store_true", help="add a side with cached features")
    parser.add_argument("--compile", action="store_true", help="add a side with run.compile")
    parser.add_argument("--serve", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device or ("cuda" if arguments.size == "7b" else "cpu")
    if arguments.serve:
        serve(arguments.serve, arguments.size, arguments.batch, device)
        return
    ways = ["", *(f" {way}" for way in ("cached", "compile") if vars(arguments)[way])]
    names = [
        name
        for precision in (["bf16"] if arguments.size == "7b" else DTYPES)
        for name in (f"transformers {precision}", *(f"vlm {precision}{way}" for way in ways))
    ]
    result = measure(arguments.size, arguments.batch, arguments.rounds, device, names)
    print({k: v for k, v in result.items() if k != "all_seconds"})
    print("written:", write(f"train_step_{arguments.size}", result))


if __name__ == "__main__":
    main()
