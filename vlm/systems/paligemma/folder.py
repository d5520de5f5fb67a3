"""Folders of PaliGemma and PaliGemma 2 as transformers saves them -> compositions."""

from __future__ import annotations

import re
from typing import Any

from vlm.common.registry import register_architecture
from vlm.inference.architectures.base import Architecture
from vlm.inference.architectures.folder import ModelFolder
from vlm.models.published import sizes

CHAT = (
    "{% for m in messages %}{% if m['content'] is not string %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endfor %}"
)
"""The published prompt: the images, the begin id, the text and a newline; an answer ends with the end id."""
BEGIN = re.compile(r"^<\w+>")
FUSED = ("use_bidirectional_attention", "num_image_tokens")
"""Options of the whole model that transformers stores with the LLM; the fusion decides what sees what."""


@register_architecture("paligemma")
class PaliGemma(Architecture):
    """SigLIP, a projection, Gemma or Gemma 2; images and question are a prefix whose tokens all see one another."""

    format = "paligemma"
    needs_image = True

    def composition(self, folder: ModelFolder) -> dict[str, Any]:
        """See :class:`Architecture`."""
        config = folder.config
        token = folder.image_token(config.image_token_id, "<image>")
        llm = folder.llm()
        llm["config"] = {key: value for key, value in llm["config"].items() if key not in FUSED}
        return {
            "vision": {"name": "hf_vision", "config": sizes(config.vision_config), "precision": folder.dtype},
            "bridge": [{"name": "linear"}],
            "fusion": {"name": "splice", "attention": "prefix"},
            "llm": llm,
            "template": {"name": "hf_chat", "media_token": token, "chat_template": CHAT.replace("<image>", token)},
            "image": folder.image(),
            "text": folder.text(),
            "generation": folder.generation(),
        }

    def prompt_text(self, text: str, image_token: str) -> str:
        """Without the begin id and the newline, which the processor adds."""
        words = text.removesuffix("\n").rpartition(image_token)[2]
        return image_token * text.count(image_token) + BEGIN.sub("", words, count=1)
