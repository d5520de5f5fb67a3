"""Folders of ``InstructBlipForConditionalGeneration`` (``Salesforce/instructblip-vicuna-7b``): the composition."""

from __future__ import annotations

from typing import Any

from vlm.common.registry import register_architecture
from vlm.inference.architectures.folder import ModelFolder
from vlm.systems.blip2.folder import Blip2, composition

TOKENIZER = "qformer_tokenizer"
"""Subfolder with the tokenizer of the Q-Former."""


@register_architecture("instructblip")
class InstructBlip(Blip2):
    """InstructBLIP: EVA-ViT, a Q-Former that reads the instruction, linear, any decoder."""

    def composition(self, folder: ModelFolder) -> dict[str, Any]:
        """See :class:`Architecture`. Raises ConfigError: an encoder-decoder such as T5."""
        section = folder.config.qformer_config
        reads_text = {
            "tokenizer": str(folder.path / TOKENIZER),
            "vocab_size": section.vocab_size,
            "max_positions": section.max_position_embeddings,
        }
        return composition(folder, reads_text)
