"""Folders of ``Blip2ForConditionalGeneration`` (``Salesforce/blip2-opt-2.7b``): the composition."""

from __future__ import annotations

from typing import Any

from vlm.common.errors import ConfigError
from vlm.common.registry import register_architecture
from vlm.inference.architectures.base import Architecture
from vlm.inference.architectures.folder import ModelFolder


@register_architecture("blip-2")
class Blip2(Architecture):
    """BLIP-2: EVA-ViT, Q-Former, linear, any decoder."""

    format = "blip2"
    one_image = needs_image = True

    def composition(self, folder: ModelFolder) -> dict[str, Any]:
        """See :class:`Architecture`. Raises ConfigError: an encoder-decoder such as T5, or a model for retrieval."""
        if folder.config.qformer_config.use_qformer_text_input:
            raise ConfigError(
                f"{folder.path}: a model for retrieval, without a language model", fix="use a folder that writes text"
            )
        return composition(folder, None)

    def prompt_text(self, text: str, image_token: str) -> str:
        """The text alone: the processor puts the image's tokens before it."""
        return text.replace(image_token, "")


def composition(folder: ModelFolder, reads_text: dict[str, Any] | None) -> dict[str, Any]:
    """EVA-ViT -> Q-Former -> linear -> the folder's LLM; a prompt is the image and then the text as it is.

    Args:
        folder: of BLIP-2 or of what has its form.
        reads_text: options of the Q-Former that reads the question; None: it does not.

    Raises:
        ConfigError: an encoder-decoder such as T5, or an encoder with another activation than GELU.
    """
    config = folder.config
    if config.text_config.is_encoder_decoder:
        raise ConfigError(
            f"{folder.path}: its language model, {config.text_config.model_type}, is an encoder-decoder, "
            "which cannot be composed",
            fix="use a folder whose language model is a decoder, such as OPT or Vicuna",
        )
    return {
        "vision": vision_part(folder),
        "bridge": [qformer_part(folder, reads_text), {"name": "linear"}],
        "fusion": {"name": "splice"},
        "llm": folder.llm(dtype=folder.dtype_below("language_model.")),
        "template": template_part(folder),
        "image": folder.image(),
        "text": folder.text(),
        "generation": folder.generation(),
    }


def vision_part(folder: ModelFolder) -> dict[str, Any]:
    """``vision:``. Raises ConfigError: another activation than GELU, or an image that is not square."""
    section = folder.config.vision_config
    size, patch = section.image_size, section.patch_size
    if section.hidden_act != "gelu" or not isinstance(size, int) or not isinstance(patch, int):
        raise ConfigError(
            f"{folder.path}: a vision encoder with {section.hidden_act}, images of {size} and patches of {patch} "
            "cannot be composed (GELU and squares can)"
        )
    return {
        "name": "eva_vit",
        "image_size": size,
        "patch_size": patch,
        "embed_dim": section.hidden_size,
        "depth": section.num_hidden_layers,
        "num_heads": section.num_attention_heads,
        "mlp_ratio": (section.intermediate_size + 0.5) / section.hidden_size,  # rounded down to the width
        "norm_eps": section.layer_norm_eps,
        "ln_vision_eps": section.layer_norm_eps,
        "qkv_bias": section.qkv_bias,
        "attention_dropout": section.attention_dropout,
        "precision": folder.dtype_below("vision_model."),
    }


def qformer_part(folder: ModelFolder, reads_text: dict[str, Any] | None) -> dict[str, Any]:
    """The bridge ``qformer``. Raises ConfigError: two different dropouts."""
    section = folder.config.qformer_config
    if section.hidden_dropout_prob != section.attention_probs_dropout_prob:
        found = f"{section.hidden_dropout_prob} and {section.attention_probs_dropout_prob}"
        raise ConfigError(f"{folder.path}: a Q-Former with two dropouts, {found}, cannot be composed")
    part = {
        "name": "qformer",
        "num_query_tokens": folder.config.num_query_tokens,
        "hidden_size": section.hidden_size,
        "num_hidden_layers": section.num_hidden_layers,
        "num_attention_heads": section.num_attention_heads,
        "intermediate_size": section.intermediate_size,
        "cross_attention_freq": section.cross_attention_frequency,
        "layer_norm_eps": section.layer_norm_eps,
        "dropout": section.hidden_dropout_prob,
        "activation": section.hidden_act,
    }
    return part if reads_text is None else part | {"reads_text": reads_text}


def template_part(folder: ModelFolder) -> dict[str, Any]:
    """``template:``: the folder's chat template; without one images, then the begin id and the text, unchanged.

    Raises WeightsError: the image token that config.json names is not in the tokenizer.
    """
    index = folder.config.image_token_index  # folders of before 2025 have none
    token = "" if index is None else folder.image_token(index, "<image>")
    plain = {"prompt_template": "{}", "lower_text": False, "sep": " "}
    return folder.template(token, {"name": "user_bot", "media_token": token, **plain})
