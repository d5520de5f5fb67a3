"""Colours, style sheet and fixed texts of the chat page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.inference.engine import Engine

CSS = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important}
footer {opacity: .55}
#head {display: flex; align-items: center; gap: 14px; flex-wrap: wrap; padding: 4px 2px 2px}
#head h1 {font-size: 1.45rem; font-weight: 700; margin: 0; letter-spacing: -.01em}
#head .chip {font-size: .8rem; padding: 3px 10px; border-radius: 999px; white-space: nowrap;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary);
  color: var(--body-text-color-subdued)}
#head .chip b {font-weight: 600; color: var(--body-text-color)}
#head .arrow {color: var(--body-text-color-subdued); margin: 0 -8px}
#head .gap {flex: 1}
#image img {image-rendering: auto; object-fit: contain}
#image {min-height: 290px}
#hint {font-size: .86rem; color: var(--body-text-color-subdued); margin: 0 2px}
#hint i {color: inherit}
#chat {border-radius: 14px}
#chat .message img {height: 120px; width: auto; max-width: 100%; object-fit: contain; border-radius: 10px}
.html-container {padding: 0 !important}
#question textarea {font-size: 1rem}
#question, #question .input-container {align-items: stretch}
#send {align-self: stretch; min-height: 46px}
#chat button[aria-label="Share"], #chat button[title="Share"] {display: none}
#examples {border-width: 0 !important; background: none; box-shadow: none; padding: 0; overflow: visible !important}
#examples .grid-wrap {overflow: visible; min-height: 0; max-height: none; height: auto; padding: 0}
#examples .grid-container {padding: 2px; gap: 10px}
#examples .thumbnail-item {height: auto; aspect-ratio: auto; display: flex; flex-direction: column; cursor: pointer;
  border-radius: 12px; border: 1px solid var(--border-color-primary); background: var(--background-fill-primary)}
#examples .thumbnail-item:hover {border-color: var(--color-accent)}
#examples .thumbnail-item img {width: 100%; height: auto; aspect-ratio: 1}
#examples .caption-label {position: static; max-width: 100%; width: 100%; min-height: 3.1em; font-size: .78rem;
  line-height: 1.25; white-space: normal; text-align: left; padding: 5px 8px; border: none; border-radius: 0;
  background: none; color: var(--body-text-color); display: flex; align-items: center; text-shadow: none}
#examples-title {font-size: .92rem; font-weight: 600; margin: 8px 2px 0}
.pixels img {image-rendering: pixelated !important}
@media (max-width: 800px) {
  #main {flex-direction: column}
  #main > .column {width: 100%; min-width: 0 !important}
  #actions {flex-wrap: nowrap}
  #actions button {min-width: 0 !important}
  #examples .grid-container {grid-template-columns: repeat(4, 1fr) !important}
}
"""

PLACEHOLDER = """### Ask about an image
**1.** Drop an image on the left{examples}.
**2.** Type a question below, for example *{question}*
**3.** Keep asking: the conversation is remembered until you restart it."""

HINT = (
    '<div id="hint">A new image starts a new conversation. To compare images, turn on '
    "<i>Several images</i> in the settings.</div>"
)


def theme(gradio: Any) -> Any:
    """Soft, indigo on slate, with the system's fonts (nothing is downloaded)."""
    fonts = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    return gradio.themes.Soft(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=fonts,
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )


def header(engine: Engine) -> str:
    """The title and the composition, part by part."""
    cfg = engine.config
    chips = '<span class="arrow">&rarr;</span>'.join(
        f'<span class="chip">{escape(name)}</span>' for name in engine.composition
    )
    model = "" if cfg is None else " / ".join(filter(None, (cfg.model.arch, cfg.model.model_type)))
    title = f'<span class="chip"><b>{escape(model)}</b></span>' if model else ""
    device = f'<span class="chip">{escape(str(engine.device))}</span>'
    return f'<div id="head"><h1>vlm chat</h1>{title}<span class="gap"></span>{chips}{device}</div>'


def placeholder(question: str, examples: bool) -> str:
    """The text of an empty chat (Markdown)."""
    return PLACEHOLDER.format(examples=", or click an example" if examples else "", question=question)
