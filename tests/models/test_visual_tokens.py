"""How many positions a medium takes is known without running the model."""

import pytest
import torch

from vlm.models.bridges.linear import Linear
from vlm.models.bridges.perceiver import Perceiver
from vlm.models.fusion.cross_attn import CrossAttention
from vlm.models.inserts.gated_xattn import GatedCrossAttention
from vlm.processors.collate import VisualTokens, collate
from vlm.testing import part


def perceiver(**options):
    config = Perceiver.Config(1, 4, 2, 6, width="llm", latents_in_keys=False, **options)
    return {"bridge": [part("perceiver", config), part("linear", Linear.Config())], "train": {"bridge.*": True}}


def looked_at():
    inserts = [part("gated_xattn", GatedCrossAttention.Config(every=1, dim_head=4, heads=2))]
    return {"fusion": part("cross_attn", CrossAttention.Config(image_token_id=4)), "inserts": inserts}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, VisualTokens(0, 3)),
        (perceiver(), VisualTokens(6, 0)),
        (perceiver(per_frame=True), VisualTokens(0, 6)),
        (looked_at(), VisualTokens(1, 0)),
        ({"vision": None, "bridge": [], "train": {"llm.*": True}}, VisualTokens(1, 0)),
    ],
)
@pytest.mark.parametrize("frames", [1, 3])
def test_positions_of_the_fused_sequence(build, example, changes, expected, frames):
    model = build(**changes)
    counted = VisualTokens.of(model.visual_tokens)
    assert counted == expected
    rows = [example(2, 3, 2, media=0 if model.vision is None else 2), example(1, 9, 4, media=0, seed=2)]
    for row in rows:
        row.media = [m.expand(frames, -1, -1, -1).contiguous() for m in row.media]
    with torch.no_grad():
        inputs = model.prepare(collate(rows, 0))
    assert (inputs.segments > 0).sum(1).tolist() == [counted.fused_length(row) for row in rows]
