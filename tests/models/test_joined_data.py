"""Data of several requests joined into that of one row: each position sees what it saw alone, at no other cost."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.models.cross_attending import xattn
from vlm.common.types import Batch, Features
from vlm.models.fusion.base import LLMInputs
from vlm.models.inserts.base import InsertData
from vlm.models.inserts.media_mask import media_masks
from vlm.models.protocols import JoinsData
from vlm.testing import tiny_example

CLOSE = {"rtol": 1e-6, "atol": 1e-6}
EXACT = {"rtol": 1e-12, "atol": 1e-12}
"""In float64: the looked-at weights are large, so that rounding in float32 shows."""
RULES = [
    {"attend_previous": previous, "immediate": immediate, "uniform_when_missing": evenly}
    for previous in (False, True)
    for immediate in (False, True)
    for evenly in (False, True)
]


def asked(batched) -> list[tuple[Batch, int]]:
    """Requests with one, two, no, three and no image, and how many of the placeholders' last images are missing."""
    shapes = [(2, 3, 1), (0, 9, 2), (3, 0, 0), (1, 4, 3), (2, 2, 0)]
    rows = [tiny_example(before, after, 0, media=n, seed=i) for i, (before, after, n) in enumerate(shapes)]
    return [(batched([row]), int(len(row.media) > 1)) for row in rows]


def prepared(model, batch: Batch, missing: int = 0) -> LLMInputs:
    if missing:
        kept = len(batch.pixels) - missing
        batch = dataclasses.replace(
            batch, pixels=batch.pixels[:kept], media_row=batch.media_row[:kept], media_pos=batch.media_pos[:kept]
        )
    with torch.no_grad():
        return model.prepare(batch)


def through(model, hidden: Tensor, data: InsertData) -> Tensor:
    """``hidden`` after the blocks of all layers."""
    insert = model.inserts[0]
    for block in insert.layers.values():
        hidden = insert.before(block, hidden, data)
    return hidden


def parts_of(model, batched, missing: bool) -> tuple[list[Tensor], list[InsertData]]:
    """In float64, hidden states and data: whole prompts, a middle piece of one, and tokens that follow some."""
    whole = [prepared(model, batch, count * missing) for batch, count in asked(batched)]
    hidden, data = [inputs.inputs_embeds.double() for inputs in whole], []
    for inputs in whole:
        media = inputs.inserts.shared["media"]
        shared = {**inputs.inserts.shared, "media": None if media is None else media.double()}
        data.append(dataclasses.replace(inputs.inserts, shared=shared))
    hidden += [hidden[1][:, 2:6], hidden[3][:, :1], hidden[0][:, -1:], hidden[2][:, -1:]]
    data += [data[1].moved(lambda v: v[:, 2:6]), data[3].step(), data[0].step(), data[2].step()]
    return hidden, data


@pytest.mark.parametrize("rules", RULES, ids=lambda r: "-".join(name for name, on in r.items() if on) or "none")
@pytest.mark.parametrize("gradients", [False, True])
def test_each_part_sees_what_it_saw_alone(batched, rules, gradients) -> None:
    model = xattn(**rules)
    hidden, data = parts_of(model, batched, rules["uniform_when_missing"])
    model.double()
    assert isinstance(model.fusion, JoinsData)
    with torch.set_grad_enabled(gradients):
        want = [through(model, h, d) for h, d in zip(hidden, data, strict=True)]
        for order in (range(len(data)), (8, 3, 2, 7, 0, 5, 1)):
            joined = model.fusion.join_data([data[i] for i in order])
            got = through(model, torch.cat([hidden[i] for i in order], 1), joined)
            torch.testing.assert_close(got, torch.cat([want[i] for i in order], 1), **EXACT)
    changed = [not torch.equal(h, w) for h, w in zip(hidden, want, strict=True)]
    assert changed == [bool(int(d.tokens["last"].max()) >= 0) for d in data]


def test_whole_model(batched) -> None:
    """Packed rows through the language model, with the data joined from each sample's own."""
    model = xattn(every=1, attend_previous=True, immediate=False)
    alone = [prepared(model, batch) for batch, _ in asked(batched)]
    with torch.no_grad():
        want = torch.cat([model.llm(inputs) for inputs in alone], 1)
        joined = LLMInputs(
            *(torch.cat([getattr(i, name) for i in alone], 1) for name in ("inputs_embeds",)),
            torch.cat([i.segments + number for number, i in enumerate(alone)], 1),
            torch.cat([i.position_ids for i in alone], 1),
            torch.cat([i.labels for i in alone], 1),
            packed=True,
            inserts=model.fusion.join_data([i.inserts for i in alone]),
        )
        torch.testing.assert_close(model.llm(joined), want, rtol=1e-5, atol=1e-5)


def test_media_of_different_widths(batched) -> None:
    """Narrower media are filled up; what a mask hides stays hidden."""
    model = xattn()
    parts, hidden = [], []
    for number, (width, masked) in enumerate([(3, False), (5, True), (2, False)]):
        batch = batched([tiny_example(2, 3, 0, media=2, seed=number)])
        tokens = torch.randn(2, 1, width, 16, generator=torch.Generator().manual_seed(number))
        mask = torch.arange(width).expand(2, 1, width) < width - 2 if masked else None
        with torch.no_grad():
            inputs = model.prepare(batch, Features(tokens, mask))
        parts.append(inputs.inserts)
        hidden.append(inputs.inputs_embeds)
    joined = model.fusion.join_data(parts)
    assert joined.shared["media"].shape == (6, 5, 16)
    assert joined.shared["real"].sum(1).tolist() == [3, 3, 3, 3, 2, 2]
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            want = [through(model, h, d) for h, d in zip(hidden, parts, strict=True)]
            got = through(model, torch.cat(hidden, 1), model.fusion.join_data(parts))
        torch.testing.assert_close(got, torch.cat(want, 1), **CLOSE)
    assert model.fusion.join_data([parts[0], parts[2]]).shared["media"].shape == (4, 3, 16)
    assert model.fusion.join_data([parts[0], parts[0]]).shared["real"] is None


def test_text_alone(batched) -> None:
    model = xattn()
    parts = [prepared(model, batch).inserts for batch, _ in asked(batched) if not len(batch.media_row)]
    joined = model.fusion.join_data(parts)
    assert joined.shared["media"] is None and joined.tokens["last"].eq(-1).all()
    hidden = torch.randn(1, joined.tokens["last"].shape[1], 32)
    assert torch.equal(through(model, hidden, joined), hidden)


def test_pieces_of_one_request_share_its_media(batched) -> None:
    model = xattn(attend_previous=True)
    inputs = prepared(model, batched([tiny_example(2, 3, 0, media=2)]))
    pieces = [inputs.inserts.moved(lambda v, a=a: v[:, a : a + 4]) for a in (0, 4)]
    joined = model.fusion.join_data(pieces)
    assert len(joined.shared["media"]) == 2
    with torch.no_grad():
        want = through(model, inputs.inputs_embeds[:, :8], inputs.inserts.moved(lambda v: v[:, :8]))
        torch.testing.assert_close(through(model, inputs.inputs_embeds[:, :8], joined), want, **CLOSE)


class Counted:
    """How many media the blocks of a model have projected."""

    def __init__(self, model) -> None:
        self.media = 0
        for block in model.inserts[0].layers.values():
            block.attn.to_kv.register_forward_hook(self._seen)

    def _seen(self, module, inputs, output) -> None:
        self.media += output.shape[:-1].numel() // 3


def test_media_are_projected_once(batched) -> None:
    """For a request, whatever steps follow and whoever it is joined with; with gradients, in every call."""
    model = xattn(every=1)
    layers = len(model.inserts[0].layers)
    counted = Counted(model)
    first, second, text = (prepared(model, asked(batched)[i][0]).inserts for i in (0, 1, 2))
    hidden = torch.randn(1, 40, 32)

    def go(data) -> None:
        through(model, hidden[:, : data.tokens["last"].shape[1]], data)

    with torch.no_grad():
        go(first)
        assert counted.media == layers
        for data in (first.step(), first.extended(), first.step().step(), first.gather(torch.tensor([[1, 0]]))):
            go(data)
        go(first.flat(torch.arange(3)))
        assert counted.media == layers
        joined = model.fusion.join_data([first.step(), text, second])
        go(joined)
        assert counted.media == 3 * layers
        go(joined)
        go(joined.step())
        go(model.fusion.join_data([second.step(), first.step()]))
        go(model.fusion.join_data([model.fusion.join_data([second, first]), text.step()]))
        go(second)
        assert counted.media == 3 * layers
    for _ in range(2):
        before = counted.media
        go(first)
        assert counted.media == before + layers
    assert all(
        set(vars(block.attn)) == set(vars(xattn().inserts[0].layers["0"].attn))
        for block in model.inserts[0].layers.values()
    )


def test_tokens_of_many_requests_meet_only_their_own_media(batched) -> None:
    """One mask with a row per request while each writes a token, and another one per length of a piece."""
    model = xattn(attend_previous=True)
    data = [prepared(model, batched([tiny_example(2, 3, 0, media=1, seed=i)])).inserts for i in range(5)]
    [mask] = media_masks(model.fusion.join_data([d.step() for d in data]))
    assert (mask.rows, mask.numbers, mask.allowed, mask.places) == (5, None, None, None)
    pieces = [data[0], *(d.step() for d in data[1:]), data[0].moved(lambda v: v[:, :4])]
    masks = {m.rows: m for m in media_masks(model.fusion.join_data(pieces))}
    assert masks[4].places.shape == (4, 1) and masks[4].numbers.tolist() == [[1], [2], [3], [4]]
    assert len(masks) == 2 and sum(len(m.places) for m in media_masks(model.fusion.join_data(pieces))) == 6


def test_values_that_are_not_numbers_stay_with_their_request(batched) -> None:
    """Whichever of the requests has them, and however many media the others have."""
    model = xattn(attend_previous=True)
    for spoilt in (0, 1, 3):
        data = [prepared(model, batch).inserts for batch, _ in asked(batched)]
        media = data[spoilt].shared["media"]
        data[spoilt] = dataclasses.replace(
            data[spoilt], shared={**data[spoilt].shared, "media": torch.full_like(media, torch.nan)}
        )
        for parts in ([d.step() for d in data], data):
            sizes = [d.tokens["last"].shape[1] for d in parts]
            hidden = torch.randn(1, sum(sizes), 32)
            with torch.no_grad():
                found = through(model, hidden, model.fusion.join_data(parts)).split(sizes, 1)
            assert [bool(f.isnan().any()) for f in found] == [i == spoilt for i in range(len(data))]
