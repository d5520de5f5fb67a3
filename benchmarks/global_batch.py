"""What ``run.global_batch`` costs in loading: samples per second, and padding, with and without it.

    python -m benchmarks.global_batch             # about three minutes
    python -m benchmarks.global_batch --steps 2 --rounds 1 --dry

The same shard of 640 x 480 JPEGs and captions goes to steps of 128 samples of 224 x 224 images and ids: four batches of
32, or ``global_batch=128`` in micro-batches of 32. Sides take turns; the processor time of a loader without workers is
what the work costs, the time with two workers what a run waits for. The padding is that of a LLaVA-like mixture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write
from benchmarks.data_loader import Conversations, processor
from benchmarks.images import write_shard
from vlm.config.run import Packing
from vlm.datasets.formats.web_shards import WebShards
from vlm.datasets.loading.data_stats import padding_share
from vlm.datasets.loading.sources import Source
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.processors.collate import VisualTokens

STEP, BATCH = 128, 32
SIDES: dict[str, dict[str, Any]] = {"batches": {}, "global_batch": {"global_batch": STEP}}


def rate(shard: Path, side: str, workers: int, steps: int) -> float:
    """Samples per second: of processor time without workers, else of time."""
    source = Source("shard", WebShards(WebShards.Config(str(shard))), BATCH)
    made = processor("fast", str(shard.with_name("prompts.txt")))
    loader = TrainLoader([source], made, seed=0, num_workers=workers, **SIDES[side])
    clock = time.perf_counter if workers else time.process_time
    loader.step(STEP // BATCH)
    started, samples = clock(), 0
    for _ in range(steps):
        samples += sum(batch.num_samples for batch in loader.step(STEP // BATCH))
    seconds = clock() - started
    loader.close()
    return samples / seconds


def speed(shard: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which the sides take turns, and of the ratios of each round."""
    found: dict[str, Any] = {}
    for workers in (0, 2):
        rates: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side in SIDES:
                rates[side].append(round(rate(shard, side, workers, steps), 1))
        ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
        middle = {side: statistics.median(values) for side, values in rates.items()}
        found[str(workers)] = {"samples_per_second": middle, "ratio": round(statistics.median(ratios), 3), "all": rates}
        print(workers, "workers:", found[str(workers)])
    return found


def padding(samples: int = 3968, visual: int = 32) -> dict[str, dict[str, float]]:
    """Share of positions that is padding, in percent, on each of 1 and 4 processes."""
    modes: dict[str, dict[str, Any]] = {
        "plain": {"mixing": "sample", "batch_size": 16},
        "grouped": {"group_by_length": 50, "mixing": "sample", "batch_size": 16},
        "packed": {"packing": Packing(max_tokens=2048), "batch_size": 4},
    }
    found: dict[str, dict[str, float]] = {}
    for name, options in modes.items():
        found[name] = {}
        for size in (None, 128, 256, 512):
            for world in (1, 4) if size else (1,):
                source = Source("mixture", Conversations(4000), 16)
                own = {**options, "visual_tokens": VisualTokens(visual, 0), "world_size": world, "global_batch": size}
                loader = TrainLoader([source], processor(size=8), seed=0, **own)
                seen = 0
                while seen < samples // world - 160:
                    seen += sum(batch.num_samples for batch in loader.step(1))
                key = f"global_batch={size}, {world} processes" if size else "off"
                found[name][key] = round(100 * padding_share(loader.report()), 2)
                loader.close()
    print("padding in percent:", json.dumps(found))
    return found


def main() -> None:
    """Measure both and write ``benchmarks/results/global_batch_cpu.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=600)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="write no result")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "00000.tar"
        write_shard(shard, given.records)
        shard.with_name("prompts.txt").write_text("<Img><ImageHere></Img> Describe this image in detail.\n")
        found = speed(shard, given.steps, given.rounds)
    result = {
        "what": f"steps of {STEP} samples of a shard of 640 x 480 JPEGs, as batches of {BATCH} and with global_batch",
        "records": given.records, "steps": given.steps, "rounds": given.rounds,
        "workers": found, "padding_percent": padding(),
    }  # fmt: skip
    if not given.dry:
        print("written:", write("global_batch_cpu", result))


if __name__ == "__main__":
    main()
