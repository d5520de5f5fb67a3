"""The page's accordion "Prompt": the system text, how many turns are kept, and what the model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from vlm.inference.engine import Engine


@dataclass
class PromptWidgets:
    """``values`` go to ``Events.write`` after the generation options; ``read`` shows the last prompt."""

    system: gr.Textbox
    turns: gr.Slider
    read: gr.Textbox

    @property
    def values(self) -> list[Any]:
        """The widgets that a visitor can change."""
        return [self.system, self.turns]


def accordion(engine: Engine) -> PromptWidgets:
    """The closed accordion, with the template's own text and all turns kept."""
    most = template_option(engine, "keep_turns", -1)  # a template that keeps few turns never reads more
    low, high = (-1, 10) if most < 0 else (0, max(most, 1))
    with gr.Accordion("Prompt", open=False, elem_id="prompt"):
        return PromptWidgets(
            gr.Textbox(
                template_option(engine, "system", ""),
                label="System text",
                lines=2,
                max_lines=8,
                elem_id="system",
            ),
            gr.Slider(low, high, most, step=1, label="Earlier turns in the prompt", info="-1: all that fit"),
            gr.Textbox(label="What the model reads", lines=3, max_lines=12, interactive=False, elem_id="read"),
        )


def template_option(engine: Engine, name: str, default: Any) -> Any:
    """An option that only some templates have, or ``default``."""
    return vars(engine.processor.template.config).get(name, default)
