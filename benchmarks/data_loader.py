"""Data loading: samples per second of a shard against two usual ways, and the padding of batches.

    python -m benchmarks.data_loader                       # all, about five minutes
    python -m benchmarks.data_loader --batches 6 --rounds 1 --workers 1

A shard of 640 x 480 JPEGs and captions goes to batches of 224 x 224 images and token ids, four ways in turns:

* ``pil``: as MiniGPT-4 loads it: webdataset decodes with PIL, torchvision resizes and normalises in DataLoader
  workers, the training process tokenises prompt and captions;
* ``transformers``: BlipImageProcessor and LlamaTokenizer in DataLoader workers;
* ``vlm exact``: this library, the same pixels as ``pil``;
* ``vlm fast``: this library with ``image: {decode: fast}``.

The padding of a LLaVA-like mixture of lengths is counted for batches padded to their longest row, batches grouped by
length, and packed rows.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write
from benchmarks.images import write_shard
from vlm.common.types import Image, Sample
from vlm.config.run import Packing
from vlm.datasets.base import message
from vlm.datasets.formats.web_shards import WebShards
from vlm.datasets.loading.data_stats import padding_share
from vlm.datasets.loading.sources import Source
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.processors.image.recipe import CLIP_MEAN, CLIP_STD, ImageRecipe
from vlm.processors.processor import Processor, TextConfig
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.systems.minigpt4.template import Vicuna0

LLM = Path(__file__).resolve().parents[1] / "tests" / "golden" / "minigpt4" / "open" / "llm"
PROMPT = "###Human: <Img><ImageHere></Img> Describe this image in detail. ###Assistant: "
SIZE = 224


def pil(shard: Path, batch: int, workers: int) -> Iterator[Any]:
    """MiniGPT-4's pipeline; texts become ids in the process that would train."""
    import webdataset as wds
    from torchvision import transforms
    from transformers import LlamaTokenizer

    transform = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    dataset = wds.DataPipeline(
        wds.ResampledShards(str(shard)),
        wds.tarfile_to_samples(),
        wds.shuffle(1000),
        wds.decode("pilrgb"),
        wds.to_tuple("jpg", "json"),
        wds.map_tuple(transform),
        wds.map(lambda pair: {"image": pair[0], "text_input": pair[1]["caption"]}),
    )
    tokenizer = LlamaTokenizer.from_pretrained(LLM)
    tokenizer.pad_token = "</s>"
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch, num_workers=workers)
    before, after = PROMPT.split("<ImageHere>")
    for rows in loader:
        options = {"return_tensors": "pt", "padding": "longest", "add_special_tokens": False}
        ids = tokenizer([f"{t}###" for t in rows["text_input"]], truncation=True, max_length=160, **options)
        yield rows["image"], tokenizer(before, **options), tokenizer(after, **options), ids


class _Raw(torch.utils.data.IterableDataset):
    """Records of the shard again and again, each worker its share."""

    def __init__(self, shard: Path) -> None:
        self._shard = shard

    def __iter__(self) -> Iterator[tuple[bytes, str]]:
        shards = WebShards(WebShards.Config(str(self._shard)))
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for seed in itertools.count():
            for record in itertools.islice(shards.records(seed), first, None, step):
                sample = shards.decode(record)
                yield sample.messages[0].media[0].source, sample.messages[1].text


class _Processed:
    """Collate function: transformers' image processor and tokenizer on a list of records."""

    def __init__(self) -> None:
        from transformers import BlipImageProcessor, LlamaTokenizer

        self._image = BlipImageProcessor(size={"height": SIZE, "width": SIZE})
        self._tokenizer = LlamaTokenizer.from_pretrained(LLM)
        self._tokenizer.pad_token = "</s>"

    def __call__(self, rows: list[tuple[bytes, str]]) -> Any:
        from PIL import Image as PILImage

        images = [PILImage.open(io.BytesIO(data)).convert("RGB") for data, _ in rows]
        texts = [f"{PROMPT}{text}###" for _, text in rows]
        return self._image(images, return_tensors="pt"), self._tokenizer(texts, padding=True, return_tensors="pt")


def transformers(shard: Path, batch: int, workers: int) -> Iterator[Any]:
    """transformers' processor in the workers."""
    return iter(
        torch.utils.data.DataLoader(_Raw(shard), batch_size=batch, num_workers=workers, collate_fn=_Processed())
    )


def ours(decode: str) -> Callable[[Path, int, int], Iterator[Any]]:
    """This library's training loader."""

    def side(shard: Path, batch: int, workers: int) -> Iterator[Any]:
        source = Source("shard", WebShards(WebShards.Config(str(shard))), batch)
        made = processor(decode, str(shard.with_name("prompts.txt")))
        return iter(TrainLoader([source], made, seed=0, num_workers=workers))

    return side


def processor(decode: str = "exact", prompts: str = "", size: int = SIZE) -> Processor:
    """MiniGPT-4's template and recipe."""
    image = ImageRecipe(ImageRecipe.Config(size=size, decode=decode))
    text = TextConfig(max_txt_len=100_000, max_context_len=100_000)
    return Processor(Tokenizer.from_folder(LLM), Vicuna0(Vicuna0.Config(prompt_path=prompts)), image, text)


SIDES = {"pil": pil, "transformers": transformers, "vlm exact": ours("exact"), "vlm fast": ours("fast")}


def rate(side: Callable[..., Iterator[Any]], shard: Path, batch: int, workers: int, batches: int) -> float:
    """Samples per second, after the batches that are prepared while the workers start."""
    loader = side(shard, batch, workers)
    for _ in range(2 * workers + 1):
        next(loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(loader)
    seconds = time.perf_counter() - start
    del loader
    return batch * batches / seconds


def speed(shard: Path, batch: int, workers: list[int], batches: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which the sides take turns."""
    found: dict[str, Any] = {}
    for count in workers:
        rates: dict[str, list[float]] = {name: [] for name in SIDES}
        for _ in range(rounds):
            for name, side in SIDES.items():
                rates[name].append(round(rate(side, shard, batch, count, batches), 1))
        middle = {name: statistics.median(values) for name, values in rates.items()}
        found[str(count)] = {
            "samples_per_second": middle,
            "ratio_to_pil": {name: round(value / middle["pil"], 3) for name, value in middle.items()},
            "ratio_to_transformers": {name: round(value / middle["transformers"], 3) for name, value in middle.items()},
            "all": rates,
        }
        print(count, "workers:", found[str(count)])
    return found


class Conversations:
    """Texts with the lengths of a LLaVA-like mixture: long answers, short answers, whole conversations."""

    def __init__(self, count: int, seed: int = 0) -> None:
        rng = random.Random(seed)
        self._image = torch.zeros(3, 8, 8)
        kinds = ((0.35, 4.6, 0.45), (0.25, 5.5, 0.3), (0.4, 2.3, 0.6))  # share, log of the median words, spread
        self._words = []
        for _ in range(count):
            _, middle, spread = rng.choices(kinds, [k[0] for k in kinds])[0]
            self._words.append(max(2, min(int(rng.lognormvariate(middle, spread)), 500)))

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, index: int) -> Sample:
        text = "a " * self._words[index]
        return Sample((message("user", Image(self._image), "Why?"), message("assistant", text)), id=str(index))


def waste(samples: int = 4000, batch: int = 16, max_tokens: int = 2048, visual: int = 32) -> dict[str, Any]:
    """Share of positions that is padding, in percent; every image counts ``visual`` positions."""
    from vlm.processors.collate import VisualTokens

    modes: dict[str, dict[str, Any]] = {
        "longest": {},
        "grouped": {"group_by_length": 50},
        "packed": {"packing": Packing(max_tokens=max_tokens), "batch_size": 4},
    }
    found: dict[str, Any] = {"samples": samples, "batch": batch, "max_tokens": max_tokens, "visual_tokens": visual}
    for name, options in modes.items():
        source = Source("mixture", Conversations(samples), batch)
        counts = VisualTokens(visual, 0)  # an image, however many frames
        loader = TrainLoader([source], processor(size=8), seed=0, visual_tokens=counts, **options)
        seen = 0
        for made in loader:
            seen += made.num_samples
            if seen >= samples - 10 * batch:
                break
        found[name] = round(100 * padding_share(loader.report()), 2)
        loader.close()
    print("padding in percent:", json.dumps(found))
    return found


def main() -> None:
    """Measure both and write ``benchmarks/results/data_loader_cpu.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dry", action="store_true", help="write no result")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "00000.tar"
        write_shard(shard, given.records)
        shard.with_name("prompts.txt").write_text("<Img><ImageHere></Img> Describe this image in detail.\n")
        found = speed(shard, given.batch, given.workers, given.batches, given.rounds)
    result = {
        "what": "a shard of 640 x 480 JPEGs and captions to batches of 224 x 224 images and ids, samples per second",
        "records": given.records, "batch": given.batch, "batches": given.batches, "rounds": given.rounds,
        "workers": found, "padding_percent": waste(),
    }  # fmt: skip
    if not given.dry:
        print("written:", write("data_loader_cpu", result))


if __name__ == "__main__":
    main()
