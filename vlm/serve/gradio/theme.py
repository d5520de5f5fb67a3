"""Colours, style sheet and fixed texts of the chat page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.config.tree import parse_text

if TYPE_CHECKING:
    from vlm.inference.engine import Engine


def static(name: str) -> str:
    """A style sheet or fixed text of the page."""
    return (Path(__file__).parent / "static" / name).read_text(encoding="utf-8").strip()


def widget(name: str) -> dict[str, Any]:
    """The fixed options of a widget of the page, from ``static/widgets.yaml``."""
    return parse_text(static("widgets.yaml"), "widgets.yaml").data[name]


def theme(gradio: Any) -> Any:
    """Soft, indigo on slate, with the system's fonts (nothing is downloaded); texts have a contrast of 4.5 or more."""
    fonts = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    soft = gradio.themes.Soft(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=fonts,
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return soft.set(**parse_text(static("colors.yaml"), "colors.yaml").data)


def header(engines: Mapping[str, Engine]) -> str:
    """The title, and of a single model its composition, part by part."""
    chips = ""
    if len(engines) == 1:
        engine = next(iter(engines.values()))
        chips = '<span class="arrow">&rarr;</span>'.join(
            f'<span class="chip">{escape(name)}</span>' for name in engine.composition
        )
        chips += f'<span class="chip">{escape(str(engine.device))}</span>'
        title = " / ".join(engine.name)
    else:
        title = f"{len(engines)} models side by side"
    title = f'<span class="chip"><b>{escape(title)}</b></span>' if title else ""
    return f'<div id="head"><h1>vlm chat</h1>{title}<span class="gap"></span>{chips}</div>'


def lane_title(name: str) -> str:
    """The heading over the answers of one of several models."""
    return f'<h2 class="lane-title">{escape(name)}</h2>'


def placeholder(question: str, examples: bool) -> str:
    """The text of an empty chat (Markdown)."""
    return static("placeholder.md").format(examples=", or click an example" if examples else "", question=question)
