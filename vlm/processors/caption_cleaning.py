"""Caption clean-up, by its published name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlm.common.bounds import Count
from vlm.common.registry import register_processor


@register_processor("blip_caption")
class BlipCaption:
    """BLIP's caption clean-up.

    Lower case; the characters ``. ! " ( ) * # : ; ~`` become spaces; runs of two or more blanks become
    one space; at most ``max_words`` words; ``prompt`` in front.
    """

    @dataclass
    class Config:
        """Prefix, and maximum number of words. Example: ``text_processor: {train: {name: blip_caption}}``"""

        prompt: str = ""
        max_words: Count = 50

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, text: str) -> str:
        """The cleaned caption."""
        text = re.sub(r"([.!\"()*#:;~])", " ", text.lower())
        text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
        words = text.split(" ")
        if len(words) > self.config.max_words:
            text = " ".join(words[: self.config.max_words])
        return self.config.prompt + text
