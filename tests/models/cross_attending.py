"""A tiny composition with gated cross-attention whose gates are open."""

from __future__ import annotations

import torch

from vlm.models.bridges.perceiver import Perceiver
from vlm.models.build import build_model
from vlm.models.fusion.cross_attn import CrossAttention
from vlm.models.inserts.gated_xattn import GatedCrossAttention
from vlm.models.llm.hf import HFCausalLM
from vlm.testing import LLAMA, composition, part

MARK = 7


def xattn(llm=None, lora=None, every=1, train=("inserts",), **fusion):
    """EVA -> perceiver (3 latents, of the encoder's width) -> cross-attention; the gates are open."""
    parts = composition(
        bridge=[part("perceiver", Perceiver.Config(depth=1, dim_head=8, heads=2, num_latents=3))],
        fusion=part("cross_attn", CrossAttention.Config(**{"image_token_id": MARK, **fusion})),
        inserts=[part("gated_xattn", GatedCrossAttention.Config(every=every, dim_head=8, heads=2, lora=lora))],
        llm=part("hf", HFCausalLM.Config(**{"config": dict(LLAMA), **(llm or {})})),
        train=list(train),
    )
    torch.manual_seed(0)
    model = build_model(parts)
    with torch.no_grad():
        for block in model.inserts[0].layers.values():
            block.attn_gate.fill_(0.7)
            block.ff_gate.fill_(-0.6)
            for matrix in (block.attn.to_q, block.attn.to_kv):
                matrix.weight.mul_(20)  # so that it matters what is looked at
    return model
