"""Images in tiles: which grid, how many tokens, the same alone, in a batch, in a packed row and from the cache."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.installed import llava
from vlm.common.errors import ConfigError, DataError
from vlm.common.types import Features, Image, MediaFacts, MediumShape, Message, Sample
from vlm.inference.engine import Engine
from vlm.models.bridges.newline import TileRowsBridge
from vlm.models.counting import GRIDS, best_grid, fitted, margins
from vlm.processors.collate import VisualTokens, collate, collate_rows
from vlm.processors.image.tiles import TilesRecipe

SIZES = [(20, 20), (42, 84), (30, 95), (200, 41), (126, 42), (300, 301), (7, 500), (500, 7)]


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("next")
    llava.build_next(folder)
    return Engine.load(folder, "cpu")


def test_grids_margins_and_sizes() -> None:
    assert best_grid(336, 672, 336, GRIDS) == (1, 2)
    assert best_grid(2000, 2000, 336, GRIDS) == (2, 2)
    assert best_grid(10, 10, 336, GRIDS) == (1, 2)  # the first of equal ones with the least empty area
    assert best_grid(100, 900, 336, GRIDS) == (1, 3)
    assert fitted(100, 200, 84, 84) == (42, 84)
    assert fitted(200, 100, 84, 84) == (84, 42)
    assert margins(100, 200, 6, 6) == (1, 0)
    assert margins(200, 100, 6, 6) == (0, 1)
    assert margins(100, 100, 6, 6) == (0, 0)


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_counted_without_encoding(size: tuple[int, int], engine: Engine) -> None:
    example = engine.examples([[Message("user", [Image(image(*size)), "?"])]])[0]
    batch = engine.batch([example])
    tokens = engine.model.encode(batch.pixels, batch.frames, batch.about).tokens
    assert example.sizes == [size] and tokens.shape[1] == 1
    assert VisualTokens.of(engine.model.visual_tokens, engine.model.counters()).of_media(example) == [tokens.shape[2]]


def test_a_batch_a_packed_row_and_the_cache_give_the_same(engine: Engine) -> None:
    def sample(*sizes: tuple[int, int]) -> Sample:
        asked = Message("user", [*(Image(image(*size)) for size in sizes), "What is it?"])
        return Sample((asked, Message("assistant", f"It is {len(sizes)}.")))

    samples = [sample((20, 20)), sample((30, 95), (300, 301)), sample(), sample((200, 41))]
    examples = [engine.processor.encode_train(s, random.Random(0)) for s in samples]
    model = engine.model

    def gradients(batches: list) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        loss = sum(model(batch).loss_sum for batch in batches)
        loss.backward()
        return float(loss.detach()), [p.grad.clone() for p in model.bridge.parameters()]

    alone = gradients([collate([example], 0) for example in examples])
    batched = gradients([collate(examples, 0)])
    packed = gradients([collate_rows([examples[:2], examples[2:]], 0)])
    for loss, grads in (batched, packed):
        assert loss == pytest.approx(alone[0], rel=1e-5)
        for found, expected in zip(grads, alone[1], strict=True):
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    model.zero_grad()
    fused = [engine.fuse(examples).inputs_embeds for _ in range(2)]
    assert torch.equal(*fused) and len(engine.features) == 4


def test_media_without_tiles_end_each_frame() -> None:
    bridge = TileRowsBridge(TileRowsBridge.Config(size=4), 3, 3)
    tokens = torch.randn(2, 3, 4, 3)
    out = bridge(Features(tokens)).tokens
    assert (
        out.shape == (2, 1, 15, 3)
        and torch.equal(out[0, 0, 4], bridge.newline)
        and torch.equal(out[1, 0, 14], bridge.newline)
    )
    assert bridge.counter()(MediumShape(3, 4, 4, None, 4, (2, 2))).tokens == 15


def test_tiles_that_do_not_fit_are_named() -> None:
    bridge = TileRowsBridge(TileRowsBridge.Config(size=4), 3, 3)
    about = MediaFacts(sizes=torch.tensor([[8, 8]]))
    with pytest.raises(ConfigError, match="2 tiles of an image of 8 x 8 pixels, expected 2 x 2"):
        bridge(Features(torch.randn(1, 3, 4, 3), about=about))
    with pytest.raises(ConfigError, match="do not lie in rows and columns"):
        bridge(Features(torch.randn(1, 5, 5, 3), about=about))
    with pytest.raises(ConfigError, match="expected pairs"):
        TileRowsBridge.Config(grids=[[1, 2, 3]])
    with pytest.raises(ConfigError, match="expected pairs"):
        TilesRecipe.Config(grids=[])
    with pytest.raises(DataError, match="a tensor, whose image is not known"):
        TilesRecipe(TilesRecipe.Config())(torch.zeros(3, 336, 336))


def test_uint8_tiles_become_the_same_pixels(tmp_path: Path) -> None:
    recipe = TilesRecipe(TilesRecipe.Config(size=14))
    exact, levels = recipe(image(20, 33)), recipe.as_uint8()(image(20, 33))
    assert levels.pixels.dtype == torch.uint8 and torch.equal(recipe.normalize(levels.pixels), exact.pixels)
    assert recipe(exact) is exact and exact.size == (20, 33)
