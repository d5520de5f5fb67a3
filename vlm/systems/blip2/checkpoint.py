"""Published files of BLIP-2 and InstructBLIP.

``blip2``: a folder of transformers' ``Blip2ForConditionalGeneration`` or ``InstructBlipForConditionalGeneration``.
``lavis_blip2``: the ``.pth`` of the repository salesforce/LAVIS: Q-Former, the norm before it, and the projection.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.formats import blip2_qformer
from vlm.checkpoint.formats.base import CheckpointFormat, below, bridge_index, parts_of
from vlm.checkpoint.formats.published import PublishedModel
from vlm.checkpoint.keymap import KeyMap
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.qformer import QFormer
from vlm.models.vision.eva import EvaViT
from vlm.models.vlm import VLM

LLM = "language_model."
BLOCK, OUR_BLOCK = "vision_model.encoder.layers.{i}", "vision.vit.blocks.{i}"
BLOCK_NAMES = {
    "self_attn.qkv.weight": "attn.qkv.weight",
    "self_attn.q_bias": "attn.q_bias",  # these two are one vector in the file, see split_biases
    "self_attn.v_bias": "attn.v_bias",
    "self_attn.projection.{rest}": "attn.proj.{rest}",
    "layer_norm1.{rest}": "norm1.{rest}",
    "layer_norm2.{rest}": "norm2.{rest}",
    "mlp.{rest}": "mlp.{rest}",
}
TABLES = ("word_embeddings", "position_embeddings")


def chain(model: VLM, file: str) -> tuple[int, int]:
    """Positions of the Q-Former and of the projection. Raises WeightsError: the composition is another."""
    qformer, linear = bridge_index(model, QFormer), bridge_index(model, Linear)
    if qformer is None or linear is None or not isinstance(model.vision, EvaViT):
        raise WeightsError(
            f"{file}: files of BLIP-2 fill eva_vit -> qformer -> linear; the composition has other parts"
        )
    return qformer, linear


def key_map(model: VLM, file: str) -> KeyMap:
    """Names of transformers' model, biases split, and ours. Raises as :func:`chain`."""
    qformer, linear = chain(model, file)
    ours = f"bridge.{qformer}"
    pairs = [
        ("vision_model.embeddings.class_embedding", "vision.vit.cls_token"),
        ("vision_model.embeddings.position_embedding", "vision.vit.pos_embed"),
        ("vision_model.embeddings.patch_embedding.{rest}", "vision.vit.patch_embed.proj.{rest}"),
        *((f"{BLOCK}.{theirs}", f"{OUR_BLOCK}.{name}") for theirs, name in BLOCK_NAMES.items()),
        ("vision_model.post_layernorm.{rest}", "vision.ln_vision.{rest}"),
        ("query_tokens", f"{ours}.query_tokens"),
        ("language_projection.{rest}", f"bridge.{linear}.proj.{{rest}}"),
        (f"{LLM}{{rest}}", "llm.model.{rest}"),
    ]
    if model.bridge[qformer].config.reads_text is not None:
        pairs += [(f"qformer.embeddings.{table}.{{rest}}", f"{ours}.text.{table}.{{rest}}") for table in TABLES]
        pairs.append(("qformer.embeddings.layernorm.{rest}", f"{ours}.qformer.layernorm.{{rest}}"))
    pairs.append(("qformer.{rest}", f"{ours}.qformer.{{rest}}"))
    return KeyMap(tuple(pairs))


def split_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``self_attn.qkv.bias [3 d]`` as ``q_bias`` and ``v_bias [d]``; everything else as it is.

    The third between them, a bias of the keys, adds the same number to all scores of a query and so changes nothing.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix("qkv.bias")
        if stem != name and name.startswith("vision_model.") and tensor.dim() == 1 and len(tensor) % 3 == 0:
            query, _, value = tensor.chunk(3)
            result |= {f"{stem}q_bias": query, f"{stem}v_bias": value}
        else:
            result[name] = tensor
    return result


def join_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`split_biases`; the keys' bias is zero."""
    result = {name: tensor for name, tensor in tensors.items() if not name.endswith(("attn.q_bias", "attn.v_bias"))}
    for name, query in tensors.items():
        if name.endswith("attn.q_bias"):
            stem = name.removesuffix("q_bias")
            result[f"{stem}qkv.bias"] = torch.cat([query, torch.zeros_like(query), tensors[f"{stem}v_bias"]])
    return result


@register_checkpoint_format("blip2")
class Blip2Folder(PublishedModel):
    """Fills the whole composition: eva_vit, qformer, linear and the language model."""

    shape_hint = "the sizes of the composition differ from those in the folder's config.json"

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        return key_map(model, file)

    def divided(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`PublishedModel`."""
        return split_biases(tensors)

    def joined(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`PublishedModel`."""
        return join_biases(tensors)


@register_checkpoint_format("lavis_blip2")
class LavisBlip2(CheckpointFormat):
    """Fills the Q-Former, ``vision.ln_vision`` and the projection into the LLM; not the encoder nor the LLM."""

    shape_hint = "the sizes under model.bridge differ from the file's, or the LLM is of another size"

    def covered_parts(self, model_cfg: Any) -> list[str]:
        """The bridge."""
        return parts_of(model_cfg, "bridge")

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`. An encoder in the file is left out: ``eva_vit_g.pth`` holds it."""
        qformer, linear = chain(model, file)
        inner = blip2_qformer.key_map(qformer, model.bridge[qformer].config.reads_text is not None)
        names = [name for name in blip2_qformer.PROJECTIONS if name != "t5_proj"]
        pairs = tuple((f"{name}.{{rest}}", f"bridge.{linear}.proj.{{rest}}") for name in names)
        ignored = (*(glob for glob in inner.ignored if glob.removesuffix(".*") not in names), "visual_encoder.*")
        return KeyMap(pairs + inner.pairs, ignored)

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> list[str]:
        """All of the bridge, and the norm before it."""
        return below(model, "bridge", "vision.ln_vision")
