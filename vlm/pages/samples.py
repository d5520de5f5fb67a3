"""Samples of datasets with their images, as the model is given them (``vlm data show --html``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from vlm.common.types import Example
from vlm.datasets.inspect.render import Piece, Shown, pieces, spoken
from vlm.pages.parts import document, jpeg_uri
from vlm.processors.collate import VisualTokens
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

SIDE = 300
"""Largest side of a thumbnail in pixels."""

FRAMES = 8
"""Frames of a video that are shown."""

BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
"""Characters that the vocabulary lacks and spells byte by byte."""


def page(
    title: str,
    datasets: Sequence[tuple[str, Sequence[Shown]]],
    recipe: ImageRecipe,
    tokenizer: Tokenizer | None,
    visual_tokens: VisualTokens | None = None,
) -> str:
    """A self-contained page; images are shown as they leave the recipe.

    Args:
        title: of the page.
        datasets: (name and description, its samples).
        recipe: whose normalisation is undone for the thumbnails.
        tokenizer: spells the pieces; None: the plain text of the messages.
        visual_tokens: positions of a medium.
    """
    body = []
    for name, samples in datasets:
        cards = "\n".join(_card(s, recipe, tokenizer, visual_tokens) for s in samples)
        body.append(f'<section><h2>{escape(name)}</h2><div class="sheets">{cards}</div></section>')
    legend = (
        'Text as the model is given it. <span class="t">Green</span> is trained on, the rest is given; '
        '<span class="m">blue</span> text counts the visual tokens of an image or video. Images are shown as the '
        "model's image recipe leaves them."
        if tokenizer is not None
        else "Without a tokenizer: the plain messages."
    )
    header = f'<header><h1>{escape(title)}</h1><p class="sub">{legend}</p></header>'
    return document(title, header + "\n".join(body), kind="wide")


def _card(shown: Shown, recipe: ImageRecipe, tokenizer: Tokenizer | None, visual_tokens: VisualTokens | None) -> str:
    if shown.sample is None:
        fault = f'<div class="error">{escape(shown.error)}</div>'
        return f'<article><div class="meta"><b>{escape(shown.name)}</b></div>{fault}</article>'
    meta = [f"<b>{escape(shown.name)}</b>", f"<span>{escape(shown.sample.source)}</span>"]
    if shown.example is None or tokenizer is None:
        text = escape("\n".join(spoken(shown.sample, limit=4000)))
        return f'<article><div class="meta">{"".join(meta)}</div><div class="text">{text}</div></article>'
    counted = visual_tokens or VisualTokens()
    meta.append(f"<span>{counted.fused_length(shown.example):,} positions</span>")
    meta.append(f"<span>{shown.example.num_targets:,} trained</span>")
    text = _highlighted(pieces(shown.example, tokenizer, visual_tokens))
    return (
        f"<article>{_images(shown.example, recipe)}"
        f'<div class="meta">{"".join(meta)}</div><div class="text">{text}</div></article>'
    )


def _highlighted(found: Sequence[Piece]) -> str:
    """The pieces as text with its spaces, one ``span`` per run of the same kind."""
    out = []
    for (trained, medium), run in groupby(found, key=lambda p: (p.trained, p.medium)):
        text = "".join(p.text for p in run)
        text = text if medium else BYTES.sub(_characters, text).replace("▁", " ").replace("⏎", "⏎\n")
        out.append(f'<span class="{"m" if medium else "t" if trained else "c"}">{escape(text)}</span>')
    return "".join(out)


def _characters(run: re.Match[str]) -> str:
    return bytes.fromhex(run.group().replace("<0x", "").replace(">", "")).decode("utf-8", "replace")


def _images(example: Example, recipe: ImageRecipe) -> str:
    if len(example.media) > 1 and all(len(medium) == 1 for medium in example.media):
        return _row([medium[0] for medium in example.media], recipe, "images", SIDE // 2)
    kinds = [(medium, "images frames" if len(medium) > 1 else "images") for medium in example.media]
    return "".join(_row(medium[:FRAMES], recipe, kind) for medium, kind in kinds)


def _row(frames: Iterable[torch.Tensor], recipe: ImageRecipe, kind: str, side: int = SIDE) -> str:
    images = "".join(f'<img alt="" src="{thumbnail(frame, recipe, side)}">' for frame in frames)
    return f'<div class="{kind}">{images}</div>'


def thumbnail(pixels: torch.Tensor, recipe: ImageRecipe, side: int = SIDE) -> str:
    """A JPEG data address of ``[3, h, w]`` with the recipe's mean and deviation undone."""
    import numpy as np
    from PIL import Image

    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (recipe.config.mean, recipe.config.std))
    levels = (pixels.numpy() * std + mean).clip(0, 1) * 255
    image = Image.fromarray(levels.round().astype(np.uint8).transpose(1, 2, 0))
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return jpeg_uri(image.resize(size, Image.Resampling.BICUBIC if scale < 2 else Image.Resampling.NEAREST))
