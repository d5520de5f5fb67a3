"""Splice: places, labels, segments and the count of marks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from vlm.common.errors import PromptError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Features
from vlm.models.fusion.splice import Splice

WIDTH = 4


class Embedder:
    """Stands in for an LLM: the embedding of id k is k everywhere."""

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return ids[..., None].float().expand(*ids.shape, WIDTH)


@pytest.fixture
def splice() -> Splice:
    return Splice(Splice.Config(), Embedder())


def naive(batch, visual, mask=None):
    """The definition, row by row."""
    rows, n = [], 0
    for ids, labels, segments in zip(batch.ids.tolist(), batch.labels.tolist(), batch.segments.tolist(), strict=True):
        row = []
        for i, label, segment in zip(ids, labels, segments, strict=True):
            if segment == 0:
                continue
            if i != MEDIA_TOKEN:
                row.append((float(i), label, segment))
                continue
            tokens = visual[n].flatten(0, 1)
            keep = tokens if mask is None else tokens[mask[n].flatten()]
            row += [(float(t[0]), IGNORE_INDEX, segment) for t in keep]
            n += 1
        rows.append(row)
    return rows


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [None, 60])
def test_against_the_definition(splice, examples, batched, packed, masked, size) -> None:
    batch = batched(examples) if size is None else packed(examples, size)
    count = len(batch.pixels)
    visual = 100 + torch.arange(count * 2 * 3).float().reshape(count, 2, 3, 1).expand(-1, -1, -1, WIDTH)
    mask = torch.rand(count, 2, 3, generator=torch.Generator().manual_seed(0)) > 0.4 if masked else None
    got = splice(batch, Features(visual, mask))
    for row, wanted in enumerate(naive(batch, visual, mask)):
        length = len(wanted)
        assert got.inputs_embeds[row, :length, 0].tolist() == [w[0] for w in wanted]
        assert got.labels[row].tolist() == [w[1] for w in wanted] + [IGNORE_INDEX] * (got.labels.shape[1] - length)
        assert got.segments[row, :length].tolist() == [w[2] for w in wanted]
        assert not got.segments[row, length:].any()
        places = [sum(1 for v in wanted[:k] if v[2] == w[2]) for k, w in enumerate(wanted)]
        assert got.position_ids[row, :length].tolist() == places
    assert got.packed == bool(batch.segments.max() > 1)


def test_masks(splice, examples, batched, packed) -> None:
    visual = torch.zeros(4, 1, 3, WIDTH)
    plain = splice(batched(examples), Features(visual))
    assert plain.attention_mask.shape == plain.labels.shape
    dense = splice(packed(examples, 60), Features(visual))
    mask, segments = dense.attention_mask[:, 0], dense.segments
    for row, i, j in [(0, 5, 3), (0, 3, 5), (0, segments.shape[1] - 1, 0), (0, 0, 0)]:
        assert mask[row, i, j] == (i >= j and segments[row, i] == segments[row, j])
    assert mask.diagonal(dim1=1, dim2=2).all()


def test_targets_never_cross_a_segment(splice, examples, packed) -> None:
    batch = packed(examples, 60)
    batch.labels[:] = batch.ids.clamp(min=0)
    inputs = splice(batch, Features(torch.zeros(4, 1, 3, WIDTH)))
    keep = inputs.predicts()
    ends = inputs.segments[:, 1:] != inputs.segments[:, :-1]
    assert not (keep[:, :-1] & ends).any()
    assert not keep[inputs.segments == 0].any()
    assert len(inputs.targets(keep)) == int(keep.sum())


def test_gradients_reach_the_images_once(splice, examples, batched) -> None:
    visual = torch.zeros(4, 1, 3, WIDTH, requires_grad=True)
    inputs = splice(batched(examples), Features(visual))
    inputs.inputs_embeds.sum().backward()
    assert torch.equal(visual.grad, torch.ones_like(visual))


def test_more_marks_than_images(splice, examples, batched) -> None:
    batch = batched(examples)
    short = dataclasses.replace(
        batch, pixels=batch.pixels[:3], media_row=batch.media_row[:3], media_pos=batch.media_pos[:3]
    )
    with pytest.raises(PromptError, match=r"sample 's4': 1 image placeholder\(s\) in the prompt, 0 image\(s\)"):
        splice(short, Features(torch.zeros(3, 1, 3, WIDTH)))


def test_no_mark_for_an_image(splice, examples, batched) -> None:
    batch = batched(examples)
    batch.ids[0][batch.ids[0] == MEDIA_TOKEN] = 7
    with pytest.raises(PromptError, match=r"sample 's1': 0 image placeholder\(s\) in the prompt, 1 image\(s\)"):
        splice(batch, Features(torch.zeros(4, 1, 3, WIDTH)))


def test_marks_without_any_image(splice, examples, batched) -> None:
    batch = dataclasses.replace(batched(examples), pixels=None)
    with pytest.raises(PromptError, match=r"2 image placeholder\(s\) in the prompt, 0 image\(s\)"):
        splice(batch, None)


def test_left_padding(splice, examples, batched) -> None:
    inputs = splice(batched(examples), Features(torch.ones(4, 1, 3, WIDTH)))
    left = inputs.left_padded()
    for row in range(len(examples)):
        real = inputs.segments[row] > 0
        size = int(real.sum())
        assert torch.equal(left.inputs_embeds[row, -size:], inputs.inputs_embeds[row, real])
        assert not left.segments[row, :-size].any()
    inputs.packed = True
    with pytest.raises(ValueError, match="packed"):
        inputs.left_padded()


def test_embeddings_that_train(examples, batched) -> None:
    class Trainable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(61, WIDTH)

        def embed(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids)

    llm = Trainable()
    batch = batched(examples)
    Splice(Splice.Config(), llm)(batch, Features(torch.zeros(4, 1, 3, WIDTH))).inputs_embeds.sum().backward()
    real = batch.ids[(batch.segments > 0) & (batch.ids != MEDIA_TOKEN)]
    assert torch.equal(llm.table.weight.grad[:, 0], torch.bincount(real, minlength=61).float())


@pytest.mark.parametrize("size", [None, 60])
def test_what_sees_what(examples, batched, packed, size) -> None:
    batch = batched(examples) if size is None else packed(examples, size)
    visual = Features(torch.zeros(len(batch.pixels), 1, 3, WIDTH))
    assert Splice(Splice.Config(), Embedder())(batch, visual).blocks is None
    image = Splice(Splice.Config(attention="image"), Embedder())(batch, visual)
    prefix = Splice(Splice.Config(attention="prefix"), Embedder())(batch, visual)
    assert (image.blocks > 0).sum() == 3 * len(batch.pixels)
    for number in range(1, len(batch.pixels) + 1):
        row, place = (image.blocks == number).nonzero().T
        assert row.tolist() == [int(batch.media_row[number - 1])] * 3
        assert place.tolist() == list(range(int(place[0]), int(place[0]) + 3))
    for row, (segments, labels) in enumerate(zip(prefix.segments, prefix.labels, strict=True)):
        for segment in range(1, int(segments.max()) + 1):
            here = (segments == segment).nonzero()[:, 0]
            first = int((labels[here] != IGNORE_INDEX).long().argmax())
            assert (prefix.blocks[row, here] > 0).tolist() == [i < first for i in range(len(here))]
    assert not prefix.blocks[prefix.segments == 0].any()
    batch.labels.fill_(IGNORE_INDEX)  # as in generation: the whole prompt
    whole = Splice(Splice.Config(attention="prefix"), Embedder())(batch, visual)
    assert torch.equal(whole.blocks > 0, whole.segments > 0)
