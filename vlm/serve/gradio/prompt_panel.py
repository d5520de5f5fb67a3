"""The page's accordion "Prompt": what stands in front of a conversation, how much of it is kept, what is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from vlm.inference.engine import Engine


@dataclass
class PromptWidgets:
    """``values`` go to ``Events.write`` behind the options of the answer; ``read`` shows the last prompt."""

    system: gr.Textbox
    turns: gr.Slider
    read: gr.Textbox

    @property
    def values(self) -> list[Any]:
        """What a visitor can change."""
        return [self.system, self.turns]


def accordion(engine: Engine) -> PromptWidgets:
    """The closed accordion, with the template's own text and all turns kept."""
    config = engine.processor.template.config
    most = getattr(config, "keep_turns", -1)  # a template that keeps few turns never reads more
    low, high = (-1, 10) if most < 0 else (0, max(most, 1))
    with gr.Accordion("Prompt", open=False, elem_id="prompt"):
        return PromptWidgets(
            gr.Textbox(
                getattr(config, "system", ""),
                label="Text in front of the conversation",
                lines=2,
                max_lines=8,
                elem_id="system",
            ),
            gr.Slider(low, high, most, step=1, label="Earlier turns in the prompt", info="-1: all that fit"),
            gr.Textbox(label="What the model reads", lines=3, max_lines=12, interactive=False, elem_id="read"),
        )
