"""What all pages are built from: the document, tables, cards of answers, embedded images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 320
"""Longest side of an image in a card of answers, in pixels."""
NOTHING = '<p class="none">none</p>'


@dataclass(frozen=True)
class AnswerCard:
    """One answer of a model with its question, the expected answer if known, and the images it was asked about."""

    question: str
    answer: str
    reference: str = ""
    images: Sequence[Any] = ()  # anything that decodes to an image
    name: str = ""


def document(title: str, body: str, script: str = "", kind: str = "") -> str:
    """A page that needs no other file: ``script`` names one in ``static``, ``kind`` a CSS class of ``main``."""
    end = f"<script>{_static(script)}</script>" if script else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_static('style.css')}</style></head>\n"
        f'<body><main class="{kind}">\n{body}\n</main>{end}</body></html>\n'
    )


def _static(name: str) -> str:
    return (Path(__file__).parent / "static" / name).read_text(encoding="utf-8")


def facts(values: Mapping[str, Any]) -> str:
    """Two columns, name and value; empty values are left out."""
    rows = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in values.items() if v != "")
    return f'<table class="facts">{rows}</table>' if rows else NOTHING


def fact_cards(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """One card of :func:`facts` per group, side by side; empty groups are left out."""
    cards = "".join(f'<div class="card"><h3>{escape(k)}</h3>{facts(v)}</div>' for k, v in groups.items() if v)
    return f'<div class="columns">{cards}</div>' if cards else NOTHING


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways where the window is narrow."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="scores"><tr>{top}</tr>{body}</table></div>'


def answer_cards(cards: Sequence[AnswerCard]) -> str:
    """Cards of answers in a grid.

    Raises:
        DataError: an image cannot be read.
    """
    result = []
    for card in cards:
        images = "".join(f'<img alt="{escape(card.name)}" src="{image_uri(image)}">' for image in card.images)
        rows = [("question", card.question), ("answer", card.answer), ("reference", card.reference)]
        items = "".join(
            f'<dt>{name}</dt><dd class="{name}">{escape(text.strip()) or "(empty)"}</dd>'
            for name, text in rows
            if text.strip() or name == "answer"
        )
        result.append(f'<div class="card sample">{images}<dl>{items}</dl></div>')
    return f'<div class="samples">{"".join(result)}</div>' if result else NOTHING


def image_uri(source: Any, side: int = SIDE) -> str:
    """Any image as a ``data:`` address: at most ``side`` pixels, small ones enlarged so that they can be seen.

    Raises:
        DataError: the image cannot be read.
    """
    from vlm.processors.image.decode import decode

    image = decode(source).copy()
    if max(image.size) < side // 2:
        factor = side // max(image.size)
        image = image.resize((image.width * factor, image.height * factor))
    image.thumbnail((side, side))
    return jpeg_uri(image)


def jpeg_uri(image: Image) -> str:
    """An RGB image as a ``data:`` address."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
