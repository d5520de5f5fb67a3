"""The same MiniGPT-4 composition in this library, with the baseline's weights copied in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.common import Sizes, TextRow, llama_config
from vlm.common.registry import resolve
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Example
from vlm.config.types import Part
from vlm.models.build import build_model
from vlm.models.vlm import VLM
from vlm.processors.collate import collate


def part(kind: str, name: str, **options: Any) -> Any:
    """A registered part with its options."""
    return Part(name, resolve(kind, name).Config(**options), options)


def composition(s: Sizes, precision: str = "fp32") -> VLM:
    """EVA-ViT -> Q-Former -> linear -> LLaMA; only the linear projection trains."""
    vision = part(
        "vision", "eva_vit", image_size=s.image_size, patch_size=s.patch_size, embed_dim=s.vision_dim,
        depth=s.vision_depth, num_heads=s.vision_heads, mlp_ratio=s.vision_hidden / s.vision_dim, precision=precision,
    )  # fmt: skip
    qformer = part(
        "bridge", "qformer", num_query_tokens=s.queries, hidden_size=s.qformer_dim, num_hidden_layers=s.qformer_layers,
        num_attention_heads=s.qformer_heads, intermediate_size=4 * s.qformer_dim,
    )  # fmt: skip
    llm = part("llm", "hf", config=llama_config(s), dtype=precision)
    model_cfg: Any = SimpleNamespace(
        inserts=[], weights=[], vision=vision,
        bridge=[qformer, part("bridge", "linear")], fusion=part("fusion", "splice"), llm=llm,
        train={"bridge.1.*": True},
    )  # fmt: skip
    return build_model(model_cfg)


@torch.no_grad()
def copy_weights(theirs: Any, ours: VLM, share: bool = False) -> None:
    """Give our composition the baseline's weights; both then compute the same loss.

    ``share``: the language model's are not copied, so that a large one is held once.
    """
    source = theirs.state_dict()
    target = dict(ours.named_parameters())

    def put(name: str, value: torch.Tensor) -> None:
        target.pop(name).copy_(value)

    put("vision.vit.cls_token", source["vision_model.embeddings.class_embedding"])
    put("vision.vit.pos_embed", source["vision_model.embeddings.position_embedding"])
    for end in ("weight", "bias"):
        put(f"vision.vit.patch_embed.proj.{end}", source[f"vision_model.embeddings.patch_embedding.{end}"])
        put(f"vision.ln_vision.{end}", source[f"vision_model.post_layernorm.{end}"])
        put(f"bridge.1.proj.{end}", source[f"language_projection.{end}"])
    depth = len(theirs.vision_model.encoder.layers)
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.projection", "mlp.fc1": "mlp.fc1",
             "mlp.fc2": "mlp.fc2"}  # fmt: skip
    for i in range(depth):
        here, there = f"vision.vit.blocks.{i}", f"vision_model.encoder.layers.{i}"
        for own, other in names.items():
            for end in ("weight", "bias"):
                put(f"{here}.{own}.{end}", source[f"{there}.{other}.{end}"])
        put(f"{here}.attn.qkv.weight", source[f"{there}.self_attn.qkv.weight"])
        q_bias, _, v_bias = source[f"{there}.self_attn.qkv.bias"].chunk(3)
        put(f"{here}.attn.q_bias", q_bias)
        put(f"{here}.attn.v_bias", v_bias)
    put("bridge.0.query_tokens", source["query_tokens"])
    for name, value in source.items():
        if name.startswith("qformer."):
            put(f"bridge.0.{name}", value)
        elif name.startswith("language_model."):
            own = name.replace("language_model.", "llm.model.", 1)
            if share:
                target.pop(own).data = value
            else:
                put(own, value)
    assert not target, f"not covered: {sorted(target)[:5]}"


def make_batch(rows: list[TextRow], pixels: torch.Tensor) -> Batch:
    """The rows as the library's own collate makes a batch of them."""
    examples = []
    for row, image in zip(rows, pixels):
        ids = [*row.before, MEDIA_TOKEN, *row.after, *row.answer]
        labels = [IGNORE_INDEX] * (len(ids) - len(row.answer)) + row.answer
        examples.append(Example(ids, labels, [image[None]]))
    return collate(examples, 0)
