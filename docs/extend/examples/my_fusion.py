"""A fusion: visual tokens scaled before they take the place of the placeholder."""

from dataclasses import dataclass

from vlm import register_fusion
from vlm.common.types import Batch, Features
from vlm.models.fusion.base import LLMInputs
from vlm.models.fusion.splice import Splice


@register_fusion("scaled_splice")
class ScaledSplice(Splice):
    """As ``splice``, with visual tokens multiplied by ``scale``."""

    @dataclass
    class Config(Splice.Config):
        """Options of ``fusion: {name: scaled_splice}``: those of ``splice`` and one more."""

        scale: float = 1.0

    config: Config

    def __call__(self, batch: Batch, visual: Features | None) -> LLMInputs:
        """``visual.tokens [n, f, v, d]`` and the text of the batch -> one sequence ``[b, L, d]`` per row."""
        if visual is not None:
            visual = Features(self.config.scale * visual.tokens, visual.mask)
        return super().__call__(batch, visual)
