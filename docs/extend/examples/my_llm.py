"""An LLM: any causal LM of transformers, with softened logits."""

from dataclasses import dataclass

from torch import Tensor

from vlm import register_llm
from vlm.models.llm.hf import HFCausalLM


@register_llm("softened_hf")
class SoftenedHF(HFCausalLM):
    """As ``hf``, with logits divided by ``softness``."""

    @dataclass
    class Config(HFCausalLM.Config):
        """Options of ``llm: {name: softened_hf}``: those of ``hf`` and one more."""

        softness: float = 1.0

    config: Config

    def head(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., vocab]`` of ``hidden [..., d]``, in training and generation."""
        return super().head(hidden) / self.config.softness

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed cross entropy of ``hidden [t, d]`` against ``targets [t]``."""
        from vlm.models.loss import head_loss

        return head_loss(self.head, hidden, targets, plain=False, smoothing=0.0)
