"""The shipped parts fulfil their contracts, and so do parts that derive from nothing of the library."""

from __future__ import annotations

from torch import nn

from vlm.models import protocols
from vlm.models.bridges.perceiver import Perceiver
from vlm.models.fusion.cross_attn import CrossAttention
from vlm.models.inserts.adapter import Adapter
from vlm.models.vlm import VLM
from vlm.testing import MeanColors, part, tiny_model


class Plain(nn.Module):
    """A bridge with nothing but what a bridge needs."""

    def __init__(self) -> None:
        super().__init__()
        self.out_dim, self.lift = 32, nn.Linear(32, 32)

    def num_tokens(self, in_tokens: int) -> int:
        return in_tokens

    def forward(self, features):
        return features


def test_shipped_parts_fulfil_their_contracts() -> None:
    model = tiny_model(inserts=[part("adapter", Adapter.Config())])
    assert isinstance(model.vision, protocols.VisionEncoder)
    assert all(isinstance(bridge, protocols.Bridge) for bridge in model.bridge)
    assert isinstance(model.llm, protocols.LanguageModel)
    assert all(isinstance(insert, protocols.LayerInsert) for insert in model.inserts)
    assert isinstance(CrossAttention, protocols.LimitsWidth) and isinstance(CrossAttention, protocols.ProvidesData)
    assert not isinstance(model.fusion, protocols.LimitsWidth)
    assert isinstance(Perceiver(Perceiver.Config(depth=1), 8, 8), protocols.JoinsFrames)


def test_optional_attributes_have_defaults() -> None:
    bridge = Plain()
    assert isinstance(bridge, protocols.Bridge) and not isinstance(bridge, protocols.JoinsFrames)
    model = VLM(MeanColors(), [bridge], nn.Linear(1, 1))
    assert model.visual_tokens(2) == 6  # frames stay apart, and the fusion splices
