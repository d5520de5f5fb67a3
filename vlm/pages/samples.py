"""Samples of datasets with their images, as the model is given them (``vlm data show --html``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from vlm.common.types import Example
from vlm.datasets.inspect.render import Piece, Shown, pieces, spoken
from vlm.pages.parts import jpeg_uri, render
from vlm.processors.collate import VisualTokens
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

SIDE = 300  # largest side of a thumbnail in pixels
FRAMES = 8  # of a video that are shown

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
    cards = [(name, [_card(s, recipe, tokenizer, visual_tokens) for s in samples]) for name, samples in datasets]
    return render("samples.html", title=title, kind="wide", datasets=cards, tokens=tokenizer is not None)


def _card(
    shown: Shown, recipe: ImageRecipe, tokenizer: Tokenizer | None, visual_tokens: VisualTokens | None
) -> dict[str, Any]:
    card: dict[str, Any] = {"name": shown.name, "images": [], "meta": [], "error": "", "runs": []}
    if shown.sample is None:
        return card | {"error": shown.error}
    card["meta"] = [shown.sample.source]
    if shown.example is None or tokenizer is None:
        return card | {"runs": [("", "\n".join(spoken(shown.sample, limit=4000)))]}
    length = (visual_tokens or VisualTokens()).fused_length(shown.example)
    card["meta"] += [f"{length:,} positions", f"{shown.example.num_targets:,} trained"]
    card["meta"] += [f"cut: {shown.example.cut}"] if shown.example.cut is not None else []
    runs = runs_of(pieces(shown.example, tokenizer, visual_tokens))
    return card | {"images": images_of(shown.example, recipe), "runs": runs}


def runs_of(found: Sequence[Piece]) -> list[tuple[str, str]]:
    """Kind and text (with its spaces) of each run of pieces of the same kind.

    The kind is a CSS class: ``m`` a medium, ``t`` text that is trained on, ``c`` other text.
    """
    out = []
    for (trained, medium), run in groupby(found, key=lambda p: (p.trained, p.medium)):
        text = "".join(p.text for p in run)
        text = text if medium else BYTES.sub(_characters, text).replace("▁", " ").replace("⏎", "⏎\n")
        out.append(("m" if medium else "t" if trained else "c", text))
    return out


def _characters(run: re.Match[str]) -> str:
    return bytes.fromhex(run.group().replace("<0x", "").replace(">", "")).decode("utf-8", "replace")


def images_of(example: Example, recipe: ImageRecipe) -> list[tuple[str, list[str]]]:
    """CSS class and thumbnails of each row: one row of several images, or one per image or video."""
    if len(example.media) > 1 and all(len(medium) == 1 for medium in example.media):
        return [("images", [thumbnail(medium[0], recipe, SIDE // 2) for medium in example.media])]
    kinds = [("images frames" if len(medium) > 1 else "images", medium[:FRAMES]) for medium in example.media]
    return [(kind, [thumbnail(frame, recipe) for frame in frames]) for kind, frames in kinds]


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
