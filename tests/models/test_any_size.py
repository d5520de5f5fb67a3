"""Images of any size, tiles, and images that become several media: batched, packed, cached and counted."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from vlm.common.errors import ConfigError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example, Features, MediumShape
from vlm.inference.feature_cache import FeatureCache
from vlm.models.bridges.concat import Concat
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.qformer import QFormer
from vlm.models.counting import grid_of
from vlm.models.fusion.splice import Splice
from vlm.models.llm.hf import HFCausalLM
from vlm.models.vlm import VLM
from vlm.processors.collate import VisualTokens, collate, collate_rows, finalize_pixels
from vlm.processors.image.recipe import ImageRecipe
from vlm.testing import LLAMA

SIDE = 4


@dataclass(frozen=True)
class PatchCount:
    """Patches of an image of any size."""

    def __call__(self, shape: MediumShape) -> MediumShape:
        grid = (shape.height // SIDE, shape.width // SIDE)
        return replace(shape, tokens=grid[0] * grid[1], grid=grid)


class Patches(nn.Module):
    """A vision encoder of any size; its tokens know their neighbours, so that padding would show."""

    out_dim, image_size, num_tokens, varies = 12, 8, 4, True

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, self.out_dim, SIDE, SIDE)
        self.mix = nn.MultiheadAttention(self.out_dim, 2, batch_first=True)

    def counter(self) -> PatchCount:
        return PatchCount()

    def forward(self, pixels: Tensor) -> Features:
        found = self.patch(pixels.flatten(0, 1))
        tokens = found.flatten(2).transpose(1, 2)
        grid = torch.tensor([found.shape[-2:]] * len(pixels))
        return Features(self.mix(tokens, tokens, tokens)[0].unflatten(0, pixels.shape[:2]), grid=grid)


def model() -> VLM:
    torch.manual_seed(0)
    llm = HFCausalLM(HFCausalLM.Config(config=dict(LLAMA)))
    whole = VLM(Patches(), [Linear(Linear.Config(), 12, llm.hidden_size)], llm)
    whole.fusion = Splice(Splice.Config(), llm)
    return whole


def example(*shapes: tuple[int, int, int], seed: int = 0) -> Example:
    """An image of each shape (frames, height, width), and an answer."""
    draw = torch.Generator().manual_seed(seed)
    media = [torch.randn(f, 3, h, w, generator=draw) for f, h, w in shapes]
    answer = torch.randint(3, 60, (4 + seed,), generator=draw).tolist()
    ids = [1, *[MEDIA_TOKEN, 7] * len(media)]
    sizes = [(h * 2, w * 2) for _, h, w in shapes]
    return Example(ids + answer, [IGNORE_INDEX] * len(ids) + answer, media, f"s{seed}", sizes=sizes)


ROWS = (((1, 8, 8),), ((1, 4, 12), (2, 8, 8)), (), ((1, 12, 4), (1, 4, 12)))


@pytest.fixture
def rows() -> list[Example]:
    return [example(*shapes, seed=seed) for seed, shapes in enumerate(ROWS)]


def test_batched_and_packed_equal_single(rows: list[Example]) -> None:
    whole = model()
    alone = sum(whole(collate([row], 0)).loss_sum for row in rows)
    for batch in (collate(rows, 0), collate_rows([rows[:2], rows[2:]], 0)):
        assert batch.about is not None
        assert_close(whole(batch).loss_sum, alone, rtol=1e-5, atol=1e-5)


def test_facts_of_a_batch_move_with_it(rows: list[Example]) -> None:
    batch = collate(rows, 0).to("cpu")
    assert batch.about is not None and batch.about.shapes is not None and batch.about.sizes is not None
    assert batch.about.shapes.tolist() == [[8, 8], [4, 12], [8, 8], [12, 4], [4, 12]]
    assert batch.about.sizes.tolist()[1] == [8, 24]


def test_cached_features_are_those_of_the_model(rows: list[Example]) -> None:
    whole, cache, batch = model().eval(), FeatureCache(), collate(rows, 0)
    want = whole.encode(batch.pixels, batch.frames, batch.about)
    cache.encode(batch.pixels[:1, :1], whole.encode)
    for _ in range(2):
        got = cache.encode(batch.pixels, whole.encode, batch.frames, batch.about)
        assert torch.equal(got.mask, want.mask)
        assert_close(got.tokens[got.mask], want.tokens[want.mask])
        assert torch.equal(got.grid, want.grid)
    assert want.grid.tolist() == [[2, 2], [1, 3], [2, 2], [3, 1], [1, 3]]


def test_counted_positions_are_those_of_the_fused_sequence(rows: list[Example]) -> None:
    whole = model()
    count = pickle.loads(pickle.dumps(VisualTokens.of(whole.visual_tokens, whole.counters())))
    fused = whole.prepare(collate(rows, 0))
    assert [count.fused_length(row) for row in rows] == (fused.segments > 0).sum(1).tolist()


def test_a_bridge_with_a_fixed_number_of_tokens_counts() -> None:
    whole = model()
    whole.bridge = nn.ModuleList([QFormer(QFormer.Config(3, 16, 2, 2, 24), 12, 32), Linear(Linear.Config(), 16, 32)])
    row = example((1, 8, 8), (3, 4, 12))
    count = VisualTokens.of(whole.visual_tokens, whole.counters())
    assert count.of_media(row) == [3, 9]
    assert count.fused_length(row) == int((whole.prepare(collate([row], 0)).segments > 0).sum())


def test_a_bridge_that_cannot_count_is_named() -> None:
    whole = model()
    whole.bridge = nn.ModuleList([Concat(Concat.Config(), 12, 32)])
    with pytest.raises(ConfigError, match="Concat does not say how many tokens leave"):
        whole.counters()


def test_tokens_that_are_not_a_square() -> None:
    with pytest.raises(ConfigError, match="5 tokens of a frame do not lie in rows and columns"):
        grid_of(Features(torch.zeros(1, 1, 5, 2)))
    assert grid_of(MediumShape(tokens=9)) == (3, 3)
    assert grid_of(Features(torch.zeros(1, 1, 6, 2), grid=torch.tensor([[2, 3]]))) == (2, 3)


def test_levels_that_only_pad_become_zero(rows: list[Example]) -> None:
    recipe = ImageRecipe(ImageRecipe.Config(size=8))
    for row in rows:
        row.media = [torch.full(m.shape, 200, dtype=torch.uint8) for m in row.media]
    batch = finalize_pixels(collate(rows, 0), recipe.normalize)
    assert batch.pixels is not None
    assert batch.pixels[1, 0, :, 4:].abs().sum() == batch.pixels[0, 1].abs().sum() == 0
    assert (batch.pixels[1, 0, :, :4] != 0).all()
