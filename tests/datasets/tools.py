"""Datasets in memory and fingerprints of batches, for the tests of the loader."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from vlm.common.errors import DataError
from vlm.common.types import Batch, Image, Message, Sample, Text
from vlm.datasets.loading.mixing import derive_seed
from vlm.datasets.loading.train_loader import TrainLoader

WORDS = ["a", "red", "boat", "on", "the", "river", "near", "an", "old", "house", "and", "two", "people", "look"]


def sample(name: str, k: int, media: int, drawn: random.Random) -> Sample:
    """Sample k: a text whose length and words follow from k, images that tell k, an id that tells the pass too."""
    rng = random.Random(f"{name}{k}")
    text = " ".join(rng.choices(WORDS, k=3 + rng.randrange(30)))
    images = tuple(Image(torch.full((3, 4, 4), k + j / 4)) for j in range(media))
    return Sample(
        (Message("user", (*images, Text("Look:"))), Message("assistant", (Text(text),))),
        id=f"{name}{k}/{drawn.random()}",
    )


class Table:
    """Map style: n samples, every third one without an image; those in ``bad`` cannot be used."""

    def __init__(self, n: int, name: str = "t", bad: tuple[int, ...] = ()) -> None:
        self.n, self.name, self.bad = n, name, bad

    def __len__(self) -> int:
        return self.n

    def draw(self, index: int, rng: random.Random) -> Sample:
        if index in self.bad:
            raise DataError(f"record {index}: broken")
        return sample(self.name, index, index % 3, rng)

    def __getitem__(self, index: int) -> Sample:
        return self.draw(index, random.Random(0))


class Tape:
    """A stream of n samples in seeded order."""

    def __init__(self, n: int, name: str = "s") -> None:
        self.n, self.name = n, name

    def records(self, seed: int | None) -> Iterator[int]:
        order = list(range(self.n))
        if seed is not None:
            random.Random(seed).shuffle(order)
        yield from order

    def draw(self, raw: int, rng: random.Random) -> Sample:
        return sample(self.name, raw, 1, rng)

    def decode(self, raw: int) -> Sample:
        return self.draw(raw, random.Random(0))


def name_of(source: str, dataset: Table | Tape, epoch: int, index: int, seed: int = 1) -> str:
    """The id of the sample at a place of a pass, as a loader with that seed draws it."""
    rng = random.Random(derive_seed(seed, "draw", source, epoch, index))
    if isinstance(dataset, Tape):
        index = list(dataset.records(derive_seed(seed, "order", source, epoch)))[index]
    return f"{dataset.name}{index}/{rng.random()}"


def fingerprint(batch: Batch) -> tuple[Any, ...]:
    """Everything in a batch, comparable."""
    fields = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    return tuple(f.tolist() if isinstance(f, torch.Tensor) else f for f in fields)


def take(loader: TrainLoader, count: int) -> list[tuple[Any, ...]]:
    """Fingerprints of the next batches."""
    return [fingerprint(b) for b in islice(loader, count)]
