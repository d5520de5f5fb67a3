"""A composition as ``LlavaForConditionalGeneration``: CLIP, one or two linear layers, any causal LM, spliced."""

from __future__ import annotations

from typing import Any

import torch

from vlm.common.registry import register_hf_form
from vlm.inference.hub.contents import Contents, Planned
from vlm.inference.hub.forms import Form, image_processor, not_plain_images, not_spliced, two_layers
from vlm.models.llm.packing import base_of
from vlm.models.vision.clip import Clip

TOWER = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector.linear_{}."


@register_hf_form("llava")
class LlavaForm(Form):
    """LlavaForConditionalGeneration: a CLIP tower, one or two linear layers, a causal LM."""

    architecture = "LlavaForConditionalGeneration"

    def misfit(self, contents: Contents) -> str | None:
        """See :class:`Form`."""
        if reason := not_spliced(contents) or not_plain_images(contents):
            return reason
        vision = contents.model.vision
        if not isinstance(vision, Clip):
            return f"the vision encoder is {contents.model_cfg.vision.name}, not clip"
        if vision.config.post_layernorm:
            return "the encoder's final norm is applied to its tokens"
        return two_layers(contents)[1] or other_head(contents)

    def config(self, contents: Contents) -> Any:
        """See :class:`Form`."""
        from transformers import LlavaConfig

        vision = contents.model.vision
        tower = {k: v for k, v in vision.model.config.to_dict().items() if not k.startswith("_")}
        text = contents.text_config(contents.rows)
        text.tie_word_embeddings = text.tie_word_embeddings and ties(contents)
        result = LlavaConfig(
            vision_config=tower,
            text_config=text.to_dict(),
            image_token_index=contents.tokenizer.image_id,
            image_seq_length=contents.image_tokens,
            projector_hidden_act="gelu" if len(two_layers(contents)[0]) == 2 else "linear",
            vision_feature_select_strategy="full" if vision.config.keep_cls else "default",
            vision_feature_layer=-1,  # later blocks are not written
            tie_word_embeddings=text.tie_word_embeddings,
        )
        result.architectures = [self.architecture]
        return result

    def tensors(self, contents: Contents) -> dict[str, Planned]:
        """See :class:`Form`."""
        facts = contents.weights.facts
        start = "vision.model."
        result = {TOWER + n.removeprefix(start): contents.direct(n) for n in facts if n.startswith(start)}
        width = contents.model.vision.out_dim
        result |= {f"{TOWER}post_layernorm.weight": contents.constant(torch.ones(width))}  # of the pooled token only
        result |= {f"{TOWER}post_layernorm.bias": contents.constant(torch.zeros(width))}
        result |= projector(contents)
        base = f"{contents.model.llm.model.base_model_prefix}."
        rows = contents.rows

        def place(name: str) -> str:
            inner = name.removeprefix(base)
            return f"model.language_model.{inner}" if inner != name else name

        return result | contents.llm_tensors(place, rows, untied=not ties(contents))

    def files(self, contents: Contents) -> dict[str, dict[str, Any]]:
        """See :class:`Form`."""
        vision = contents.model.vision
        processor = {
            "processor_class": "LlavaProcessor",
            "patch_size": vision.model.config.patch_size,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "full" if vision.config.keep_cls else "default",
            "image_token": contents.tokenizer.image,
        }
        image = {"processor_class": "LlavaProcessor", **image_processor(contents)}
        return {"processor_config.json": processor, "preprocessor_config.json": image}


def ties(contents: Contents) -> bool:
    """Whether the class finds the LLM's embeddings to tie its head to: it knows one name for them."""
    return "embed_tokens" in dict(base_of(contents.model.llm.model).named_children())


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


def other_head(contents: Contents) -> str | None:
    """Why the class would compute the LLM otherwise: it has a plain head of its own over the LLM's base model."""
    from transformers import AutoModel

    llm = contents.model.llm
    head = llm.model.get_output_embeddings()
    base = base_of(llm.model)
    if not llm.plain_head or head.bias is not None:
        return "the LLM scales, caps or shifts its logits, which the class does not"
    if AutoModel._model_mapping[type(llm.model.config)] is not type(base):
        return f"the class would build the LLM as another one than {type(base).__name__}"
    return None
