"""Images and videos with different numbers of frames in one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from vlm.common.types import Example, Features
from vlm.inference.feature_cache import FeatureCache
from vlm.models.frames import join


@pytest.fixture
def rows(example: Any) -> list[Example]:
    """An image, a video of 3 frames, text, a video of 2 frames with an image."""
    made = [example(2, 3, 4, seed=1), example(1, 2, 3, seed=2), example(3, 0, 6, media=0, seed=3)]
    made.append(example(0, 4, 2, media=2, seed=4))
    made[1].media = [torch.randn(3, 3, 28, 28)]
    made[3].media[0] = torch.randn(2, 3, 28, 28)
    return made


def test_batched_equals_single(build: Any, batched: Any, packed: Any, rows: list[Example]) -> None:
    model = build().eval()
    single = [model(batched([r])) for r in rows[:3]]  # the last one holds two counts itself
    alone = sum(o.loss_sum.item() for o in single)
    together = model(batched(rows[:3]))
    assert_close(together.loss_sum.item(), alone, rtol=1e-5, atol=1e-5)
    for batch in (batched(rows), packed(rows, 200)):
        parts = sum(model(batched(rows[k : k + 1])).loss_sum.item() for k in range(4))
        assert_close(model(batch).loss_sum.item(), parts, rtol=1e-5, atol=1e-5)


def test_features_of_each_medium_are_those_alone(build: Any, batched: Any, rows: list[Example]) -> None:
    model, batch = build().eval(), batched(rows)
    assert batch.frames.tolist() == [1, 3, 2, 1]
    found = model.encode(batch.pixels, batch.frames)
    assert found.mask is not None
    media = [m for r in rows for m in r.media]
    for medium, tokens, mask in zip(media, found.tokens, found.mask, strict=True):
        assert_close(tokens[mask], model.encode(medium[None]).tokens[0].flatten(0, 1))
        assert mask.sum() == 3 * len(medium)


def test_gradients_reach_the_bridge(build: Any, batched: Any, rows: list[Example]) -> None:
    model = build().train()
    model(batched(rows)).loss_sum.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.bridge[1].parameters())


def test_join_keeps_masks_and_order() -> None:
    one = Features(torch.ones(2, 1, 2, 4), torch.tensor([[[True, False]], [[True, True]]]))
    two = Features(torch.full((1, 3, 1, 4), 2.0))
    joined = join([(torch.tensor([2, 0]), one), (torch.tensor([1]), two)])
    assert joined.tokens.shape == (3, 3, 2, 4)
    assert joined.mask is not None
    assert joined.mask.sum((1, 2)).tolist() == [2, 3, 1]
    assert [float(t[m].mean()) for t, m in zip(joined.tokens, joined.mask)] == [1.0, 2.0, 1.0]
    assert join([(torch.tensor([0]), two)]) is two


def test_cache_of_mixed_media(build: Any, batched: Any, rows: list[Example]) -> None:
    model, batch, cache = build().eval(), batched(rows), FeatureCache()
    seen: list[int] = []

    def encoder(pixels: torch.Tensor, frames: torch.Tensor | None = None) -> Features:
        seen.append(len(pixels))
        return model.encode(pixels, frames)

    want = model.encode(batch.pixels, batch.frames)
    cache.encode(batch.pixels[:1, :1], encoder)
    for _ in range(2):
        got = cache.encode(batch.pixels, encoder, batch.frames)
        assert got.mask is not None
        for k in range(4):
            assert_close(got.tokens[k][got.mask[k]], want.tokens[k][want.mask[k]])
    assert seen == [1, 3]
