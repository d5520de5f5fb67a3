"""The random part of an image recipe: in training only, from (seed, dataset, pass, index) alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm.common.types import Image, Sample, Video
from vlm.config.run import Packing
from vlm.datasets.base import message
from vlm.datasets.loading.sources import Source
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.datasets.loading.valid_loader import ValidLoader
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor
from vlm.processors.templates.roles import Plain
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.processors.video.recipe import VideoRecipe

LLM = Path(__file__).parents[1] / "golden" / "minigpt4" / "open" / "llm"
NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


class Media:
    """Six samples: an image, or a video of ten frames."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        medium = Image(NOISE) if index % 2 else Video([np.roll(NOISE, k, axis=0) for k in range(10)])
        return Sample((message("user", medium), message("assistant", f"number {index}")), id=str(index))


@pytest.fixture
def make() -> Callable[[], Processor]:
    def processor(**train: float) -> Processor:
        image = ImageRecipe(ImageRecipe.Config(size=8, train=ImageRecipe.Train(scale=(0.2, 0.5), flip=0.5)))
        video = VideoRecipe(VideoRecipe.Config(num_frames=3, sampling="segments"), image)
        return Processor(Tokenizer.from_folder(LLM), Plain(Plain.Config()), image, video=video)

    return processor


def epoch(loader: TrainLoader, steps: int) -> dict[str, list[torch.Tensor]]:
    seen: dict[str, list[torch.Tensor]] = {}
    for _, batch in zip(range(steps), loader):
        for name, pixels in zip(batch.sample_ids, batch.pixels, strict=True):
            seen.setdefault(name, []).append(pixels)
    loader.close()
    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_training_varies_over_passes_and_repeats_by_seed(make: Callable[[], Processor], workers: int) -> None:
    runs = [
        epoch(TrainLoader([Source("toy", Media(), 2)], make(), seed=seed, num_workers=workers), 6) for seed in (1, 1, 2)
    ]
    assert sorted(runs[0]) == [str(k) for k in range(6)]
    for name, views in runs[0].items():
        assert len(views) == 2
        assert not torch.equal(*views)
        assert all(torch.equal(a, b) for a, b in zip(views, runs[1][name], strict=True))
        assert not torch.equal(views[0], runs[2][name][0])


def test_evaluation_does_not(make: Callable[[], Processor]) -> None:
    passes = [list(ValidLoader([Source("toy", Media(), 6)], make(), seed=seed)) for seed in (1, 2)]
    one, two = (p[0] for p in passes)
    assert torch.equal(one.pixels, two.pixels)
    assert one.frames.tolist() == [3, 1, 3, 1, 3, 1]
    assert torch.equal(one.pixels[1, 0], ImageRecipe(ImageRecipe.Config(size=8))(NOISE))


class Prepared(Media):
    """The same with every third image prepared as a tensor."""

    def __getitem__(self, index: int) -> Sample:
        medium = Image(ImageRecipe(ImageRecipe.Config(size=8))(NOISE)) if index % 3 == 1 else Image(NOISE)
        return Sample((message("user", medium), message("assistant", f"number {index}")), id=str(index))


@pytest.mark.parametrize("dataset", [Media(), Prepared()])
@pytest.mark.parametrize("mode", ["batch", "packed"])
def test_workers_send_levels_and_change_nothing(make: Callable[[], Processor], dataset: Media, mode: str) -> None:
    options = {"packing": Packing(max_tokens=80)} if mode == "packed" else {}
    loaders = [
        TrainLoader([Source("toy", dataset, 3)], make(), seed=1, num_workers=workers, **options) for workers in (0, 2)
    ]
    for _, one, two in zip(range(4), *loaders):
        assert one.pixels.dtype == two.pixels.dtype == torch.float32
        assert torch.equal(one.pixels, two.pixels)
        assert (one.frames is None and two.frames is None) or torch.equal(one.frames, two.frames)
    for loader in loaders:
        loader.close()
