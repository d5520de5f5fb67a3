"""Feature cache: seconds per step with and without it, data loading included, and its start-up with 665,000 entries.

    python -m benchmarks.feature_cache
    python -m benchmarks.feature_cache --size small --images 64 --steps 4 --rounds 1 --entries 10000

Both sides train the linear projection of the MiniGPT-4 composition of ``train_step`` on 640 x 480 JPEGs. One epoch of
each side follows the other, in turns within one run:

* ``plain``: decode, resize, vision encoder, Q-Former, LLM;
* ``fills``: the same with an empty cache, which it writes;
* ``reads``: with the cache that ``fills`` wrote.

``cpu_seconds`` are those of the training process, which other work on the machine changes less.

``patches`` are the same with a Q-Former that trains, so that only the encoder's patches can be kept.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import SMALL, Sizes, resident, write
from benchmarks.data_loader import LLM
from benchmarks.images import caption, jpeg, photo
from benchmarks.ours import composition
from vlm.datasets.formats.conversation_json import ConversationJson
from vlm.datasets.loading.sources import Source
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.models.frozen.chain import describe_parts, frozen_parts
from vlm.models.frozen.encode import FirstParts
from vlm.models.trainable import select_trainable
from vlm.models.vlm import VLM
from vlm.processors.features.folder import make_folder, used_bytes
from vlm.processors.features.index import LINE, SEED, Index
from vlm.processors.features.media import MediaCache, image_recipe
from vlm.processors.features.store import Reader, Writer
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor, TextConfig
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.runners.features.keep import Keeper
from vlm.systems.minigpt4.template import Vicuna0

DIGEST = "0" * 32


def write_data(folder: Path, images: int) -> Path:
    """Photographs as files, and dialogues about them."""
    records = []
    for k in range(images):
        (folder / f"{k}.jpg").write_bytes(jpeg(photo(640, 480, seed=k)))
        turns = [{"from": "human", "value": "Describe this image."}, {"from": "gpt", "value": caption(k)}]
        records.append({"id": str(k), "image": f"{k}.jpg", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json"


def make_processor(size: int) -> Processor:
    """MiniGPT-4's template and recipe."""
    image = ImageRecipe(ImageRecipe.Config(size=size))
    template = Vicuna0(Vicuna0.Config(prompt_template="###Human: {} ###Assistant: "))
    return Processor(Tokenizer.from_folder(LLM), template, image, TextConfig(max_txt_len=160))


class Side:
    """Training steps of one side; ``folder``: of its cache, or None."""

    def __init__(self, model: VLM, data: Path, options: argparse.Namespace, sizes: Sizes, folder: Path | None) -> None:
        self.model, self.keeper, processor = model, None, make_processor(sizes.image_size)
        model.first = None
        if folder is not None:
            index = Index(make_folder(folder, DIGEST, {}, {}))
            index.refresh()
            self.keeper = Keeper(Writer(folder / DIGEST, 1e12), index, None)
            model.first = FirstParts(frozen_parts(model)[0], self.keeper)
            processor = processor.reading(MediaCache(Reader(index), image_recipe(processor.image), None))
        dataset = ConversationJson(ConversationJson.Config(ann_path=str(data), image_path=str(data.parent)))
        source = Source("photos", dataset, options.batch)
        self.loader = TrainLoader([source], processor, seed=0, num_workers=options.workers)
        self.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)

    def epoch(self, steps: int) -> tuple[float, float]:
        """Seconds of an epoch, the start of the workers left out, and those that this process computed."""
        self._step(next(self.loader))
        started, computed = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self._step(next(self.loader))
        seconds = time.perf_counter() - started, time.process_time() - computed
        self.loader.close()
        if self.keeper is not None:
            self.keeper.close()
        return seconds

    def _step(self, batch: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.model.compute_dtype is torch.bfloat16):
            output = self.model(batch)
        (output.loss_sum / output.num_tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def compare(model: VLM, data: Path, options: argparse.Namespace, sizes: Sizes, place: Path) -> dict[str, Any]:
    """Median seconds of a step of each side, samples per second, and bytes of an image."""
    seconds: dict[str, list[float]] = {"plain": [], "fills": [], "reads": []}
    computed: dict[str, list[float]] = {name: [] for name in seconds}
    for turn in range(options.rounds + 1):
        shutil.rmtree(place, ignore_errors=True)
        for name, own in seconds.items():
            taken, busy = Side(model, data, options, sizes, None if name == "plain" else place).epoch(options.steps)
            own += [taken / options.steps] if turn else []
            computed[name] += [busy / options.steps] if turn else []
    median = {name: statistics.median(own) for name, own in seconds.items()}
    cpu = {name: statistics.median(own) for name, own in computed.items()}
    index = Index(place / DIGEST)
    index.refresh()
    return {
        "parts_kept": frozen_parts(model)[0],
        "seconds_per_step": {name: round(value, 5) for name, value in median.items()},
        "samples_per_second": {name: round(options.batch / value, 2) for name, value in median.items()},
        "ratio_to_plain": {name: round(median["plain"] / value, 3) for name, value in median.items()},
        "cpu_seconds_per_step": {name: round(value, 5) for name, value in cpu.items()},
        "cpu_ratio_to_plain": {name: round(cpu["plain"] / value, 3) for name, value in cpu.items()},
        "bytes_per_image": round(used_bytes(place) / len(index)),
        "all": {name: [round(value, 5) for value in own] for name, own in seconds.items()},
    }


def start_up(place: Path, entries: int, files: int) -> dict[str, Any]:
    """Seconds to read the index of so many entries, to find one, and the memory of the index; made-up lines."""
    folder, rng = make_folder(place, DIGEST, {}, {}), np.random.default_rng(0)
    for lines in np.array_split(np.arange(entries), files):
        words = rng.integers(0, 2**63, (len(lines), LINE // 8), dtype=np.uint64)
        words[:, 5] = 49_152
        words[:, 7] = np.bitwise_xor.reduce(words[:, :7], axis=1) ^ np.uint64(SEED)
        name = f"host-{os.getpid()}-{secrets.token_hex(4)}.idx"
        words.astype("<u8").tofile(folder / name)
    before, started = resident(), time.perf_counter()
    index = Index(folder)
    index.refresh()
    seconds, memory = time.perf_counter() - started, resident() - before
    assert len(index) == entries
    keys = [words[k, :3].astype("<u8").tobytes() for k in rng.integers(0, len(words), 1000)]
    started = time.perf_counter()
    assert all(len(index.find(key)) == 1 for key in keys)
    found = (time.perf_counter() - started) / len(keys)
    started = time.perf_counter()
    index.refresh()
    again = time.perf_counter() - started
    return {
        "entries": entries,
        "files": 2 * files,
        "seconds_to_read": round(seconds, 4),
        "seconds_to_look_again": round(again, 6),
        "microseconds_to_find": round(found * 1e6, 2),
        "index_bytes_on_disk": entries * LINE,
        "memory_mib": round(memory, 1),
    }


def chains(sizes: Sizes, precision: str) -> Iterator[tuple[str, VLM]]:
    """Compositions by what of them can be kept."""
    torch.manual_seed(0)
    model = composition(sizes, precision)
    yield "qformer", model
    select_trainable(model, {"bridge.*": True})
    yield "patches", model


def main() -> None:
    """Measure and write ``results/feature_cache.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=["small", "middle"], default="middle")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--entries", type=int, default=665_000)
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = SMALL if options.size == "small" else Sizes()
    assert options.images == options.batch * (options.steps + 1), "an epoch is one warm-up step and the measured ones"
    result: dict[str, Any] = {
        "what": "a training step of the MiniGPT-4 composition on 640 x 480 JPEGs, loading included"
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        result["start_up"] = start_up(folder / "many", options.entries, options.files)
        data = write_data(folder, options.images)
        result["bytes_per_jpeg"] = round(statistics.mean(file.stat().st_size for file in folder.glob("*.jpg")))
        for name, model in chains(sizes, options.precision):
            started = time.perf_counter()
            describe_parts(model, frozen_parts(model)[0])
            digested = time.perf_counter() - started
            result[name] = compare(model, data, options, sizes, folder / "cache")
            result[name]["seconds_to_digest_the_weights"] = round(digested, 3)
    write("feature_cache", {**result, **vars(options)})


if __name__ == "__main__":
    main()
