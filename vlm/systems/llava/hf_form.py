"""A composition as ``LlavaForConditionalGeneration``: CLIP or SigLIP, one or two linear layers, any LLM, spliced."""

from __future__ import annotations

from typing import Any

import torch

from vlm.checkpoint.keymap import KeyMap
from vlm.common.registry import register_hf_form
from vlm.inference.hub.contents import Contents, Planned
from vlm.inference.hub.forms import (
    Form,
    config_of,
    image_processor,
    not_plain_images,
    not_spliced,
    other_head,
    ties_embeddings,
    two_layers,
)
from vlm.models.vision.clip import Clip
from vlm.models.vision.hf import HFVision
from vlm.systems.llava.checkpoint import outer_pairs

TOWER = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector.linear_{}."
TOWERS = ("clip_vision_model", "siglip_vision_model")


@register_hf_form("llava")
class LlavaForm(Form):
    """LlavaForConditionalGeneration: a CLIP or SigLIP tower, one or two linear layers, a causal LM."""

    architecture = "LlavaForConditionalGeneration"

    def misfit(self, contents: Contents) -> str | None:
        """See :class:`Form`."""
        reason = not_spliced(contents) or not_plain_images(contents) or other_tower(contents)
        return reason or two_layers(contents)[1] or other_head(contents)

    def wrong_in(self, server: str, contents: Contents) -> str | None:
        """See :class:`Form`. Seen in vLLM 0.33."""
        if server == "vllm" and len(two_layers(contents)[0]) == 1:
            return "it knows no projector without an activation"
        return None

    def config(self, contents: Contents) -> Any:
        """See :class:`Form`."""
        tower = {k: v for k, v in contents.model.vision.model.config.to_dict().items() if not k.startswith("_")}
        text = contents.text_config(contents.rows)
        text.tie_word_embeddings = text.tie_word_embeddings and ties_embeddings(contents)
        bridge = contents.model.bridge[0]
        return config_of(
            self,
            "llava",
            vision_config=tower,
            text_config=text.to_dict(),
            image_token_index=contents.tokenizer.image_id,
            image_seq_length=contents.image_tokens,
            projector_hidden_act=bridge.config.activation if len(two_layers(contents)[0]) == 2 else "linear",
            vision_feature_select_strategy=strategy(contents),
            vision_feature_layer=-1,  # later blocks are not written
            tie_word_embeddings=text.tie_word_embeddings,
        )

    def tensors(self, contents: Contents) -> dict[str, Planned]:
        """See :class:`Form`."""
        names, width = KeyMap(tuple(outer_pairs(contents.model))), contents.model.vision.out_dim
        vision = [name for name in contents.weights.facts if name.startswith("vision.")]
        result = {str(names.theirs(name)): contents.direct(name) for name in vision}
        unused = f"{TOWER}post_layernorm."  # of the pooled token alone, or of a layer that is not read
        result |= {f"{unused}weight": contents.constant(torch.ones(width))}
        result |= {f"{unused}bias": contents.constant(torch.zeros(width))}
        return (
            result
            | projector(contents)
            | contents.llm_tensors(
                lambda name: str(names.theirs(f"llm.model.{name}")), contents.rows, untied=not ties_embeddings(contents)
            )
        )

    def files(self, contents: Contents) -> dict[str, dict[str, Any]]:
        """See :class:`Form`."""
        config = contents.model.vision.model.config
        processor = {
            "processor_class": "LlavaProcessor",
            "patch_size": config.patch_size,
            "num_additional_image_tokens": int(config.model_type == TOWERS[0]),
            "vision_feature_select_strategy": strategy(contents),
            "image_token": contents.tokenizer.image,
        }
        image = {"processor_class": "LlavaProcessor", **image_processor(contents)}
        return {"processor_config.json": processor, "preprocessor_config.json": image}


def strategy(contents: Contents) -> str:
    """Which tokens of the tower are read: all, or all but the first, the class token."""
    vision = contents.model.vision
    return "full" if vision.config.keep_cls or vision.model.config.model_type != TOWERS[0] else "default"


def other_tower(contents: Contents) -> str | None:
    """Why the vision encoder is not a tower that the class builds and reads alike."""
    vision, name = contents.model.vision, contents.model_cfg.vision.name
    if isinstance(vision, Clip):
        return "the encoder's final norm is applied to its tokens" if vision.config.post_layernorm else None
    if not isinstance(vision, HFVision) or vision.model.config.model_type not in TOWERS:
        return f"the vision encoder is {name}, not a CLIP or SigLIP tower"
    if vision.norm is not None:
        return "the encoder's final norm is applied to its tokens"
    if len(vision.chosen) > 1 or vision.config.native or vision.image_size != vision.tower.size:
        return "the encoder reads several layers, or images of another size than its own"
    return None


def projector(contents: Contents) -> dict[str, Planned]:
    """The two layers of the projector; where the bridge has one, the second is the identity."""
    layers, _ = two_layers(contents)
    width, result = contents.model.llm.hidden_size, {}
    for number, layer in enumerate(layers, start=1):
        name = PROJECTOR.format(number)
        result[f"{name}weight"] = contents.direct(f"{layer}.weight")
        bias = f"{layer}.bias"
        known = bias in contents.weights.facts
        result[f"{name}bias"] = contents.direct(bias) if known else contents.constant(torch.zeros(width))
    if len(layers) == 1:
        name = PROJECTOR.format(2)
        identity = Planned(
            torch.empty(width, width, dtype=contents.dtype, device="meta"),
            lambda: torch.eye(width, dtype=contents.dtype),
        )
        result |= {f"{name}weight": identity, f"{name}bias": contents.constant(torch.zeros(width))}
    return result
