"""What all pages are built from: Jinja templates, cards of answers, embedded images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

SIDE = 320  # longest side of an image in a card of answers, in pixels


@dataclass(frozen=True)
class AnswerCard:
    """One answer of a model with its question, the expected answer if known, and the images it was asked about."""

    question: str
    answer: str
    reference: str = ""
    images: Sequence[Any] = ()  # anything that decodes to an image
    name: str = ""


def render(template: str, **values: Any) -> str:
    """A file of ``templates`` with its values filled in and escaped; pages need no other file.

    Raises DataError: an image cannot be read.
    """
    text = _environment().get_template(template).render({"kind": "", "script": "", **values})
    return text.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair cannot be written


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    files = FileSystemLoader(here / "templates")
    env = Environment(loader=files, autoescape=True, undefined=StrictUndefined, **blocks)
    env.globals["static"] = lambda name: Markup((here / "static" / name).read_text(encoding="utf-8"))
    env.filters["image_uri"] = image_uri
    return env


def image_uri(source: Any, side: int = SIDE) -> str:
    """Any image as a ``data:`` address: at most ``side`` pixels, small ones enlarged so that they can be seen.

    Raises DataError: the image cannot be read.
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
