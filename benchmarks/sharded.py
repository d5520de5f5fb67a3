"""A model in shards: memory of each process, host memory while its weights are read, losses, seconds of a step.

    python -m benchmarks.sharded                # about ten minutes on two cores
    python -m benchmarks.sharded --size small --dry

A LLaMA folder in float16 with random weights, read as float32, with a small encoder and LoRA on its attention.
Each number of processes trains on the same samples, with copies (``none``) and in shards (``all``). Host memory is
the sum over the processes of their largest growth from just before the build, sampled every 10 ms; a small model
is built before, so that imported modules do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import resident, write

SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "vocab_size": 2000},
    "middle": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 14, "vocab_size": 8000},
}
VISION = {"name": "eva_vit", "image_size": 28, "patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 3}
SAMPLES, TOKENS, STEPS = 4, 32, 3
FORMS = ((1, "none"), (2, "none"), (2, "all"), (4, "all"))


def make_folder(folder: Path, size: str) -> None:
    """A folder of Hugging Face in several files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=8, **SIZES[size]))
    model.half().save_pretrained(folder, max_shard_size="150MB")


def composition(llm: dict[str, Any], weights: list[dict[str, Any]], shard: str) -> Any:
    """The configuration of a run."""
    from vlm.config.api import load_config

    lora = {"r": 8, "alpha": 16, "dropout": 0.0, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    model = {
        "vision": VISION, "bridge": [{"name": "linear"}], "fusion": {"name": "splice"},
        "llm": {"name": "hf", "lora": lora, **llm}, "template": {"name": "user_bot"}, "image": {"size": 28},
        "train": ["bridge.*", "llm.lora"], "weights": [{"format": "random", "into": "vision"}, *weights],
    }  # fmt: skip
    run = {"task": "image_text_pretrain", "parallel": {"shard": shard}, "device": "cpu"}
    return load_config({"model": model, "datasets": {}, "run": run}, check="none")


class Growth:
    """Largest resident memory within the block beyond that at its start, in MiB."""

    def __enter__(self) -> Growth:
        self.start, self.most, self.running = resident(), 0.0, True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()

    def watch(self) -> None:
        """Look every 10 ms."""
        while self.running:
            self.most = max(self.most, resident() - self.start)
            time.sleep(0.01)


def samples(rank: int, processes: int, vocab: int) -> Any:
    """This process's part of the samples of every step."""
    from vlm.common.types import MEDIA_TOKEN, Batch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocab, (SAMPLES, TOKENS), generator=generator)
    labels, pixels = ids.clone(), torch.randn(SAMPLES, 1, 3, 28, 28, generator=generator)
    ids[:, 0] = MEDIA_TOKEN
    labels[:, : TOKENS // 2] = -100
    own = slice(rank, SAMPLES, processes)
    rows = torch.arange(len(ids[own]))
    return Batch(ids[own], labels[own], torch.ones_like(ids[own]), pixels[own], rows, torch.zeros_like(rows))


def work(folder: Path, size: str, shard: str, out: Path) -> None:
    """One process of a run."""
    from vlm.common import dist
    from vlm.common.processes.shards import own
    from vlm.runners.train.optim import Precision, build_optimizer, build_scaler
    from vlm.runners.train.parallel.copies import spread_of, wrap
    from vlm.runners.train.parallel.sharding import load_spread
    from vlm.runners.train.step import Stepper
    from vlm.tasks.image_text_pretrain import ImageTextPretrain

    torch.set_num_threads(1)
    with dist.joined("cpu") as (world, device):
        little = {"model_type": "llama", "num_attention_heads": 8, **SIZES["small"]}
        random = [{"format": "random", "into": "llm"}]
        load_spread(composition({"config": little}, random, shard), device, Precision())
        files = [{"format": "hf_llm", "path": str(folder), "into": "llm"}]
        cfg = composition({"path": str(folder)}, files, shard)
        dist.seed_everything(cfg.run.seed, world.rank)
        dist.barrier()
        with Growth() as growth:
            model = load_spread(cfg, device, Precision())
        held = sum(own(p).numel() * p.element_size() for p in model.parameters()) / 2**20
        whole = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
        model.train()
        optimizer = build_optimizer(model, lr=1e-2, weight_decay=0.0, beta2=0.999, device=device)
        stepper = Stepper(
            spread_of(model, wrap(model)), ImageTextPretrain(), optimizer, build_scaler(Precision(), device),
            device=device, precision=Precision(),
        )  # fmt: skip
        batch = samples(world.rank, world.size, SIZES[size]["vocab_size"])
        losses, seconds = [], []
        for step in range(1, STEPS + 1):
            started = time.perf_counter()
            losses.append(stepper([batch], step, 1e-2).loss)
            seconds.append(time.perf_counter() - started)
        every = dist.gather_objects((growth.most, held))
        if world.rank == 0:
            found = {"processes": world.size, "shard": shard, "model_mib": whole, "held_mib": [h for _, h in every]}
            found |= {"reading_mib": sum(most for most, _ in every), "losses": losses, "seconds": sorted(seconds)[1]}
            out.write_text(json.dumps(found))


def measure(folder: Path, size: str, processes: int, shard: str) -> dict[str, Any]:
    """Run it and read what it found."""
    out = folder.parent / "found.json"
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else [])]
    command += [__file__, "--size", size, "--work", str(folder), shard, str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(command, env=env, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    """Measure every form, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="middle")
    parser.add_argument("--dry", action="store_true", help="write no result")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(Path(given.work[0]), given.size, given.work[1], Path(given.work[2]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder) / "llm", given.size)
        for processes, shard in FORMS:
            row = measure(Path(folder) / "llm", given.size, processes, shard)
            alone = rows[0] if rows else row
            row["off_by"] = max(abs(a - b) for a, b in zip(row["losses"], alone["losses"], strict=True))
            row["held_times_n"] = max(row["held_mib"]) * (processes if shard != "none" else 1) / row["model_mib"]
            row["reading_ratio"] = row["reading_mib"] / row["model_mib"] / (processes if shard == "none" else 1)
            rows.append(row)
            print({key: value for key, value in row.items() if key != "losses"})
    if not given.dry:
        write("sharded", {"what": "a model in shards beside copies", "size": given.size, "runs": rows})


if __name__ == "__main__":
    main()
