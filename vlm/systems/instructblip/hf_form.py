"""A composition as ``InstructBlipForConditionalGeneration``: BLIP-2 whose Q-Former reads the question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm.checkpoint.safe import copy_files
from vlm.common.registry import register_hf_form
from vlm.inference.hub.contents import Contents
from vlm.systems.blip2.hf_form import Blip2Form, image_first
from vlm.systems.instructblip.folder import TOKENIZER

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@register_hf_form("instructblip")
class InstructBlipForm(Blip2Form):
    """InstructBlipForConditionalGeneration: EVA-ViT, a Q-Former that reads the question, linear, a causal LM."""

    architecture = "InstructBlipForConditionalGeneration"
    processor = "InstructBlipProcessor"
    reads_text = True

    def misfit(self, contents: Contents) -> str | None:
        """See :class:`Form`."""
        reason = super().misfit(contents)
        return reason or (None if image_first(contents) else "its prompts do not begin with the image")

    def config(self, contents: Contents) -> Any:
        """See :class:`Form`."""
        text = contents.model.bridge[0].config.reads_text
        sizes = {"vocab_size": text.vocab_size, "max_position_embeddings": text.max_positions}
        return self.whole("instructblip", contents, sizes)

    def extra(self, contents: Contents, folder: Path) -> list[str]:
        """See :class:`Form`: also the tokenizer of the Q-Former."""
        source = Path(contents.model.bridge[0].config.reads_text.tokenizer).expanduser()
        (folder / TOKENIZER).mkdir()
        copy_files(FILES, source, folder / TOKENIZER)
        return super().extra(contents, folder)
