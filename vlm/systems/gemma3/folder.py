"""Folders of Gemma 3 as transformers saves them -> compositions."""

from __future__ import annotations

from typing import Any

from vlm.common.errors import ConfigError
from vlm.common.registry import register_architecture
from vlm.inference.architectures.base import Architecture
from vlm.inference.architectures.folder import ModelFolder
from vlm.models.published import sizes
from vlm.processors.tokenizer.chat_template import read_chat_template

IMAGE = "<image_soft_token>"


@register_architecture("gemma3")
class Gemma3(Architecture):
    """SigLIP, average pooling, a norm and a projection, Gemma 3; the tokens of an image see one another."""

    format = "gemma3"

    def composition(self, folder: ModelFolder) -> dict[str, Any]:
        """See :class:`Architecture`. Raises ConfigError: crops besides the image, or a pool that does not divide."""
        config, section = folder.config, folder.config.vision_config
        side, tokens = section.image_size // section.patch_size, round(config.mm_tokens_per_image**0.5)
        if folder.preprocessor.get("do_pan_and_scan") or side % tokens:
            raise ConfigError(
                f"{folder.path}: crops (pan and scan), or {side} x {side} patches pooled to {tokens} x {tokens}, "
                "cannot be composed",
                fix='set "do_pan_and_scan": false in preprocessor_config.json',
            )
        return {
            "vision": {"name": "hf_vision", "config": sizes(section), "precision": folder.dtype},
            "bridge": [
                {"name": "avg_pool", "factor": side // tokens},
                {"name": "mlp", "depth": 1, "bias": False, "norm": "rms", "norm_eps": section.layer_norm_eps},
            ],
            "fusion": {"name": "splice", "attention": "image"},
            "llm": folder.llm(),
            "template": template_part(folder),
            "image": folder.image(),
            "text": folder.text(),
            "generation": folder.generation(),
        }


def template_part(folder: ModelFolder) -> dict[str, Any]:
    """``template:``, the folder's, with what its processor writes around an image.

    Raises WeightsError: no chat template, or the tokenizer lacks the tokens of an image.
    """
    config, tokenizer = folder.config, folder.tokenizer
    part = folder.template(folder.image_token(config.image_token_id, IMAGE))
    begin, end = tokenizer.piece(config.boi_token_index), tokenizer.piece(config.eoi_token_index)
    found = read_chat_template(folder.path)
    text = "" if found is None else found.text.replace(begin, f"\\n\\n{begin}{part['media_token']}{end}\\n\\n")
    return part | {"chat_template": text}
