"""The projector file (mmproj) of llama.cpp's LLaVA form: vision tower and MLP."""

from __future__ import annotations

from typing import Any

from vlm.checkpoint.keymap import KeyMap
from vlm.inference.hub.contents import Contents
from vlm.inference.hub.forms import not_plain_images, not_spliced, two_layers
from vlm.models.vision.clip import Clip
from vlm.models.vision.hf import HFVision

LAYER = "vision.model.encoder.layers.{i}."
NAMES = KeyMap(
    (
        ("v.class_embd", "vision.model.embeddings.class_embedding"),
        ("v.patch_embd.{rest}", "vision.model.embeddings.patch_embedding.{rest}"),
        ("v.position_embd.weight", "vision.model.embeddings.position_embedding.weight"),
        ("v.pre_ln.{rest}", "vision.model.pre_layrnorm.{rest}"),
        ("v.blk.{i}.attn_q.{rest}", f"{LAYER}self_attn.q_proj.{{rest}}"),
        ("v.blk.{i}.attn_k.{rest}", f"{LAYER}self_attn.k_proj.{{rest}}"),
        ("v.blk.{i}.attn_v.{rest}", f"{LAYER}self_attn.v_proj.{{rest}}"),
        ("v.blk.{i}.attn_out.{rest}", f"{LAYER}self_attn.out_proj.{{rest}}"),
        ("v.blk.{i}.ln1.{rest}", f"{LAYER}layer_norm1.{{rest}}"),
        ("v.blk.{i}.ln2.{rest}", f"{LAYER}layer_norm2.{{rest}}"),
        ("v.blk.{i}.ffn_up.{rest}", f"{LAYER}mlp.fc1.{{rest}}"),
        ("v.blk.{i}.ffn_down.{rest}", f"{LAYER}mlp.fc2.{{rest}}"),
        ("mm.0.{rest}", "bridge.0.layers.0.{rest}"),
        ("mm.2.{rest}", "bridge.0.layers.2.{rest}"),
    )
)
"""llama.cpp's names and ours."""
TOWERS = ("clip_vision_model", "siglip_vision_model")
ACTIVATIONS = {"quick_gelu": None, "gelu": "gelu", "gelu_pytorch_tanh": "gelu", "silu": "silu"}
"""Activation of the tower -> what the file says; None: llama.cpp's default. Its GELU is the tanh approximation."""


def misfit(contents: Contents) -> str | None:
    """Why the composition is not of llama.cpp's LLaVA form; None if it is."""
    if reason := not_spliced(contents) or not_plain_images(contents):
        return reason
    vision, name = contents.model.vision, contents.model_cfg.vision.name
    if not isinstance(vision, Clip | HFVision) or vision.model.config.model_type not in TOWERS:
        return f"the vision encoder is {name}, not a CLIP or SigLIP tower"
    norm = vision.norm is not None if isinstance(vision, HFVision) else vision.config.post_layernorm
    if norm or (isinstance(vision, HFVision) and (len(vision.chosen) > 1 or vision.config.native)):
        return "the tokens are normed, or of several layers, or of images of any size"
    if vision.config.keep_cls and has_class_token(contents):
        return "the class token is kept, which llama.cpp leaves out"
    if vision.image_size != vision.model.config.image_size:
        return "the encoder reads images of another size than its own"
    if vision.model.config.hidden_act not in ACTIVATIONS:
        return f"the encoder's activation is {vision.model.config.hidden_act}"
    layers, reason = two_layers(contents)
    if reason is None and (len(layers) != 2 or f"{layers[0]}.bias" not in contents.weights.facts):
        return "the bridge is not an MLP of two layers with biases"
    if reason is None and contents.model.bridge[0].config.activation not in ("gelu", "gelu_pytorch_tanh"):
        return "the activation between the two layers of the bridge is not GELU"
    return reason


def has_class_token(contents: Contents) -> bool:
    """Whether the tower has a class token besides the patches."""
    return bool(contents.model.vision.model.config.model_type == TOWERS[0])


def add_sizes(writer: Any, contents: Contents) -> None:
    """The metadata that llama.cpp's clip.cpp reads."""
    vision, image = contents.model.vision, contents.processor.image.config
    config, depth = vision.model.config, len(vision.blocks())
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_uint32("clip.vision.image_size", config.image_size)
    writer.add_uint32("clip.vision.patch_size", config.patch_size)
    writer.add_uint32("clip.vision.embedding_length", config.hidden_size)
    writer.add_uint32("clip.vision.feed_forward_length", config.intermediate_size)
    writer.add_uint32("clip.vision.projection_dim", contents.model.llm.hidden_size)
    writer.add_uint32("clip.vision.attention.head_count", config.num_attention_heads)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", config.layer_norm_eps)
    writer.add_uint32("clip.vision.block_count", depth)
    writer.add_array("clip.vision.feature_layer", [depth])  # otherwise the last block is left out
    writer.add_array("clip.vision.image_mean", [float(value) for value in image.mean])
    writer.add_array("clip.vision.image_std", [float(value) for value in image.std])
    if activation := ACTIVATIONS[config.hidden_act]:
        writer.add_bool(f"clip.use_{activation}", True)
