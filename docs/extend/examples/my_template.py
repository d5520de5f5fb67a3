"""A template: ``Question: ... Answer: ...`` on lines of their own."""

from dataclasses import dataclass, field

from vlm import register_template
from vlm.processors.templates.roles import Template


@register_template("question_answer")
class QuestionAnswer(Template):
    """A preset of the template with roles; only defaults change."""

    @dataclass
    class Config(Template.Config):
        """The texts around a question and an answer."""

        user: str = "Question: "
        assistant: str = "Answer: "
        sep: str = "\n"
        end_sym: str = "\n"
        image_prefix: str = ""
        image_suffix: str = "\n"
        chat_form: bool = True  # training writes the same text as chat
        stop: list[str] = field(default_factory=lambda: ["\n", "</s>"])
