"""The question about an image in the tokens of a bridge that reads it."""

from __future__ import annotations

from pathlib import Path

from vlm.common.errors import WeightsError
from vlm.common.file_kind import mistaken
from vlm.common.text import read_text
from vlm.processors.tokenizer.backends import Fast
from vlm.processors.tokenizer.special_tokens import read_json


class QuestionTokenizer:
    """Text -> ids as ``tokenizer.json`` frames them (``[CLS] ... [SEP]``); pickles into loader workers.

    Special strings in a question are ordinary text. A longer question loses its end, or its beginning if
    ``tokenizer_config.json`` says ``truncation_side: left``.

    Example: ``QuestionTokenizer("qformer_tokenizer", 512)("what is it?")``
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        """``limit`` is the longest question in tokens.

        Raises WeightsError: no ``tokenizer.json`` in ``folder``, or an unreadable one.
        """
        file = Path(folder).expanduser() / "tokenizer.json"
        if not file.is_file():
            result = "no tokenizer.json in it" if file.parent.is_dir() else "no such folder"
            raise WeightsError(
                f"tokenizer of the bridge that reads the question, {file.parent}: {result}",
                fix="name the folder of that tokenizer in the bridge's reads_text.tokenizer, "
                "such as qformer_tokenizer in a published folder",
            )
        if fault := mistaken(file):
            raise WeightsError(fault, fix="fetch tokenizer.json again")
        side = read_json(file.parent / "tokenizer_config.json").get("truncation_side")
        self._backend = Fast(read_text(file, error=WeightsError), file)
        self._backend.limit(limit, "left" if side == "left" else "right")
        self.vocab_size = self._backend.size

    def __call__(self, text: str) -> list[int]:
        """Ids ``[t]``."""
        return self._backend.encode_framed(text.encode("utf-8", "replace").decode("utf-8"))
