"""Prompts of MiniGPT-v2, with the texts of the repository Vision-CAIR/MiniGPT-4."""

from __future__ import annotations

from dataclasses import dataclass

from vlm.common.registry import register_template
from vlm.processors.templates.roles import Template


@register_template("minigpt_v2")
class MiniGPTv2(Template):
    """``[INST] ... [/INST]`` of MiniGPT-v2: no system text, a space after every training question with an image."""

    task_texts = (
        "[grounding] describe this image in detail",
        "[refer] ",
        "[detection] ",
        "[identify] what is this ",
        "[vqa] ",
    )

    @dataclass
    class Config(Template.Config):
        """Defaults of the published v2 composition."""

        user: str = "<s>[INST] "
        assistant: str = " [/INST]"
        prompt_template: str = "[INST] {} [/INST]"
        end_sym: str = "</s>"
        question_suffix: str = " "
        turn_start: str | None = "<s>"
