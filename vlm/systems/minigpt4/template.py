"""Prompts of MiniGPT-4 and MiniGPT-v2, with the texts of the repository Vision-CAIR/MiniGPT-4."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm.common.registry import register_template
from vlm.processors.templates.roles import Template

VISION_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)
"""System text of the published vision chats (a format constant the checkpoints were shown with)."""


@register_template("vicuna0")
class Vicuna0(Template):
    """``###Human: ...###Assistant: ``, the format of Vicuna v0 and MiniGPT-4."""

    @dataclass
    class Config(Template.Config):
        """Defaults of the published Vicuna composition."""

        system: str = VISION_SYSTEM
        user: str = "Human: "
        assistant: str = "Assistant: "
        sep: str = "###"
        prompt_template: str = "###Human: {} ###Assistant: "
        end_sym: str = "###"
        stop: list[str] = field(default_factory=lambda: ["###"])


@register_template("llama2")
class Llama2(Template):
    """``[INST] ... [/INST] ``, the format of MiniGPT-4 with Llama-2-chat."""

    @dataclass
    class Config(Template.Config):
        """Defaults of the published LLaMA-2 composition."""

        system: str = VISION_SYSTEM
        user: str = "<s>[INST] "
        assistant: str = " [/INST] "
        prompt_template: str = "[INST] {} [/INST] "
        end_sym: str = "</s>"
        turn_start: str | None = "<s>"


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
