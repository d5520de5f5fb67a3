"""Training step: this library against transformers' BLIP-2 with a LLaMA text model.

    python -m benchmarks.train_step                  # CPU middle size, float32 and bfloat16
    python -m benchmarks.train_step --size 7b        # on a GPU, random weights, bfloat16

Same sizes, weights, images and texts; forward, backward and AdamW step of the projection; the sides run in turns
in one process and the medians are compared. Both sides keep frozen parts frozen and see new images at each step
(no feature is cached).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    SEVEN_B,
    SMALL,
    Sizes,
    alternate,
    baseline,
    baseline_inputs,
    make_rows,
    median,
    write,
)
from benchmarks.ours import composition, copy_weights, make_batch

SIZES = {"small": SMALL, "cpu": Sizes(), "7b": SEVEN_B}


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


def our_step(model: Any, rows: list, pixels: torch.Tensor, dtype: torch.dtype) -> Callable[[], float]:
    """One optimiser step of this library; returns the loss."""
    batch = make_batch(rows, pixels.cpu()).to(pixels.device)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    model.train()

    def step() -> float:
        with torch.autocast(pixels.device.type, dtype, enabled=dtype is not torch.float32):
            output = model(batch)
        loss = output.loss_sum / output.num_tokens
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def build_sides(s: Sizes, batch: int, device: str, dtypes: list[str], only: str = "") -> dict[str, Callable[[], float]]:
    """The steps to compare, by name; ``only`` builds a single one (for its memory)."""
    torch.manual_seed(0)
    pixels = torch.randn(batch, 3, s.image_size, s.image_size, device=device)
    rows = make_rows(batch, s.vocab, seed=0)
    sides: dict[str, Callable[[], float]] = {}
    for name in dtypes:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
        theirs = None if only == f"vlm {name}" else baseline(s)
        ours = None if only == f"transformers {name}" else composition(s, name)
        if theirs is not None and ours is not None:
            copy_weights(theirs, ours)
        if theirs is not None:
            if dtype is torch.bfloat16:  # both sides store frozen weights in bfloat16 and the projection in float32
                theirs = theirs.to(dtype)
                theirs.language_projection.float()
            sides[f"transformers {name}"] = their_step(theirs.to(device), rows, pixels, s, dtype)
        if ours is not None:
            sides[f"vlm {name}"] = our_step(ours.to(device), rows, pixels, dtype)
    return sides


def measure(size: str, batch: int, rounds: int, device: str, dtypes: list[str]) -> dict[str, Any]:
    """Medians, ratios, losses and memory of every side at one size."""
    on_gpu = device != "cpu"
    sides = build_sides(SIZES[size], batch, device, dtypes)
    losses = {name: step() for name, step in sides.items()}
    seconds = alternate(sides, rounds, torch.cuda.synchronize if on_gpu else lambda: None)
    medians = {name: median(values) for name, values in seconds.items()}
    first = medians[f"transformers {dtypes[0]}"]
    return {
        "what": "training step (forward, backward, optimiser), only the projection trains",
        "size": size, "batch": batch, "rounds": rounds, "device": device, "loss": losses,
        "seconds_per_step": medians, "samples_per_second": {k: round(batch / v, 3) for k, v in medians.items()},
        f"ratio_to_transformers_{dtypes[0]}": {k: round(first / v, 3) for k, v in medians.items()},
        "step_memory_mb": gpu_memory(sides) if on_gpu else {name: cpu_memory(size, batch, name) for name in sides},
        "all_seconds": seconds,
    }  # fmt: skip


def cpu_memory(size: str, batch: int, name: str) -> float:
    """Peak resident memory that the steps of one side add to its model, in MiB, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.train_step",
        "--size",
        size,
        "--batch",
        str(batch),
        "--memory-of",
        name,
    ]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_memory(size: str, batch: int, name: str) -> None:
    """What ``cpu_memory`` reads: the growth of the peak over two steps."""
    step = build_sides(SIZES[size], batch, "cpu", [name.split()[1]], only=name)[name]
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again: building a model takes more than holding it
    step()
    step()
    peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    print(round(int(peak.split()[1]) / 1024 - held, 1))


def gpu_memory(sides: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Peak GPU memory of one step of each side, minus what both models' weights take, in MiB."""
    peaks = {}
    for name, step in sides.items():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        peaks[name] = round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)
    return peaks


def main() -> None:
    """Parse, measure, write ``benchmarks/results/train_step_<size>.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default=None)
    parser.add_argument("--memory-of", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory(arguments.size, arguments.batch, arguments.memory_of)
        return
    device = arguments.device or ("cuda" if arguments.size == "7b" else "cpu")
    dtypes = ["bf16"] if arguments.size == "7b" else ["fp32", "bf16"]
    result = measure(arguments.size, arguments.batch, arguments.rounds, device, dtypes)
    print({k: v for k, v in result.items() if k != "all_seconds"})
    print("written:", write(f"train_step_{arguments.size}", result))


if __name__ == "__main__":
    main()
