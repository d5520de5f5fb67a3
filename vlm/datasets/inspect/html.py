"""``vlm data show --html``: samples with their images as one page that needs no other file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from vlm.common.types import Example
from vlm.datasets.inspect.render import Piece, Shown, pieces, spoken
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
"""Letters that a vocabulary lacks and spells byte by byte."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: #1d2530; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", "Noto Sans CJK SC", sans-serif; }
header { padding: 28px 36px 8px; max-width: 1500px; margin: 0 auto; }
h1 { font-size: 22px; margin: 0 0 6px; font-weight: 650; }
h2 { font-size: 17px; margin: 26px 0 12px; font-weight: 650; }
.legend { color: #5b6675; font-size: 13.5px; }
main { padding: 0 36px 48px; max-width: 1500px; margin: 0 auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 18px; align-items: start; }
article { background: #fff; border: 1px solid #e1e5ea; border-radius: 10px; overflow: hidden; display: flex;
  flex-direction: column; }
.images { display: flex; flex-wrap: wrap; gap: 8px; padding: 14px 14px 0; }
.images img { border-radius: 6px; display: block; max-width: 100%; border: 1px solid #e1e5ea; }
.images.clip img { width: 70px; height: auto; }
.meta { padding: 12px 14px 0; font-size: 13px; color: #5b6675; display: flex; flex-wrap: wrap; gap: 4px 14px; }
.meta b { color: #1d2530; font-weight: 600; overflow-wrap: anywhere; }
.text { padding: 10px 14px 16px; overflow-wrap: anywhere; white-space: pre-wrap; max-height: 420px; overflow-y: auto;
  font-size: 14.5px; }
.t { background: #d8f3dc; color: #0b4f26; border-radius: 3px; padding: 1px 0; }
.m { background: #dbe9fb; color: #174a8b; border-radius: 4px; padding: 1px 6px; font-size: 12.5px;
  white-space: nowrap; }
.c { color: #4a5563; }
.error { padding: 14px; color: #8f1d1d; background: #fdeeee; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


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
        body.append(f'<section><h2>{escape(name)}</h2><div class="grid">{cards}</div></section>')
    legend = (
        'Text as the model is given it. <span class="t">Green</span> is trained, the rest is condition; '
        '<span class="m">blue</span> stands for the visual tokens of an image or video. Images are shown after the '
        "image recipe of the model."
        if tokenizer is not None
        else "Without a tokenizer: the plain messages."
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f'<header><h1>{escape(title)}</h1><div class="legend">{legend}</div></header><main>'
        + "\n".join(body)
        + "</main></body></html>\n"
    )


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
    text = _marked(pieces(shown.example, tokenizer, visual_tokens))
    return (
        f"<article>{_images(shown.example, recipe)}"
        f'<div class="meta">{"".join(meta)}</div><div class="text">{text}</div></article>'
    )


def _marked(found: Sequence[Piece]) -> str:
    """Runs of equal kind; between pieces of a run nothing is drawn, blanks are blanks again."""
    out = []
    for (trained, medium), run in groupby(found, key=lambda p: (p.trained, p.medium)):
        text = "".join(p.text for p in run)
        text = text if medium else BYTES.sub(_letters, text).replace("▁", " ").replace("⏎", "⏎\n")
        out.append(f'<span class="{"m" if medium else "t" if trained else "c"}">{escape(text)}</span>')
    return "".join(out)


def _letters(run: re.Match[str]) -> str:
    return bytes.fromhex(run.group().replace("<0x", "").replace(">", "")).decode("utf-8", "replace")


def _images(example: Example, recipe: ImageRecipe) -> str:
    rows = []
    for medium in example.media:
        clip = len(medium) > 1
        images = "".join(f'<img alt="" src="{thumbnail(frame, recipe)}">' for frame in medium[:FRAMES])
        rows.append(f'<div class="images{" clip" if clip else ""}">{images}</div>')
    if len(rows) > 1 and all("clip" not in row for row in rows):
        images = "".join(f'<img alt="" src="{thumbnail(m[0], recipe, SIDE // 2)}">' for m in example.media)
        return f'<div class="images">{images}</div>'
    return "".join(rows)


def thumbnail(pixels: torch.Tensor, recipe: ImageRecipe, side: int = SIDE) -> str:
    """A JPEG data address of ``[3, h, w]`` with the recipe's mean and deviation undone."""
    import numpy as np
    from PIL import Image

    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (recipe.config.mean, recipe.config.std))
    levels = (pixels.numpy() * std + mean).clip(0, 1) * 255
    image = Image.fromarray(levels.round().astype(np.uint8).transpose(1, 2, 0))
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    image = image.resize(size, Image.Resampling.BICUBIC if scale < 2 else Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
