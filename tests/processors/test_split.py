"""An image that its recipe divides into several media with text of its own."""

from __future__ import annotations

import random
from typing import Any

import torch

from vlm.common.types import MEDIA_TOKEN, Image, Message, Prepared, Split
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor
from vlm.processors.templates.roles import Plain


class Halves(ImageRecipe):
    """Divides an image into its halves, with words between them."""

    splits, fixed_size = True, False

    def __call__(self, source: Any, name: str = "", rng: random.Random | None = None) -> Any:
        if isinstance(source, Prepared | Split):
            return source
        pixels = super().__call__(source, name, rng)
        left, right = (Prepared(half[None], (8, 16)) for half in pixels.chunk(2, dim=-1))
        return Split(("(", left, "|", right, ")"))


def test_an_image_becomes_several_media_with_text_between(tokenizer: Any) -> None:
    processor = Processor(tokenizer, Plain(Plain.Config()), Halves(ImageRecipe.Config(size=8)))
    pixels = torch.randn(3, 8, 8)
    found = processor.encode_chat([Message("user", [Image(pixels), "what"])])
    texts = [tokenizer.encode(text) for text in ("(", "|", ")", " what")]
    want = [texts[0], [MEDIA_TOKEN], texts[1], [MEDIA_TOKEN], texts[2], texts[3]]
    assert found.ids[1:] == sum(want[:-1], []) + found.ids[-len(texts[3]) :]
    assert [m.shape for m in found.media] == [(1, 3, 8, 4)] * 2
    assert torch.equal(torch.cat([m[0] for m in found.media], -1), pixels)
    assert found.sizes == [(8, 16)] * 2
    again = processor.encode_chat([Message("user", [Image(processor.image(pixels)), "what"])])
    assert again.ids == found.ids
