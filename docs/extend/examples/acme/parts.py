"""What Acme-VLM has of its own in the model: a bridge and a template."""

from dataclasses import dataclass

from torch import nn

from vlm import register_bridge, register_template
from vlm.common.types import Features
from vlm.processors.templates.roles import Template


@register_bridge("acme_projector")
class Projector(nn.Module):
    """LayerNorm, then a linear layer into the width of the LLM."""

    @dataclass
    class Config:
        """No options."""

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config, self.out_dim = config, llm_dim
        self.norm, self.proj = nn.LayerNorm(in_dim), nn.Linear(in_dim, llm_dim)

    def num_tokens(self, in_tokens: int) -> int:
        """As many as come in."""
        return in_tokens

    def forward(self, features: Features) -> Features:
        """``[n, f, v, in_dim]`` -> ``[n, f, v, llm_dim]``."""
        return Features(self.proj(self.norm(features.tokens)), features.mask)


@register_template("acme")
class AcmeTemplate(Template):
    """``Q: ... A: ...``."""

    @dataclass
    class Config(Template.Config):
        """Texts around a conversation."""

        user: str = "Q: "
        assistant: str = "A: "
        sep: str = "\n"
        image_prefix: str = ""
        image_suffix: str = "\n"
        chat_form: bool = True
