"""A kind of published model: from its folder to a composition of this library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from vlm.inference.architectures.folder import ModelFolder


class Architecture(ABC):
    """A kind of published model, registered with ``@register_architecture`` under transformers' ``model_type``.

    Attributes:
        format: its weight format, whose key map has the names of transformers' model.
        trains: globs of what one usually trains of it, a suggestion for ``train:``.
        one_image: whether its prompts hold at most one image.
        needs_image: whether transformers' model takes no prompt without one.
    """

    format: ClassVar[str]
    trains: ClassVar[tuple[str, ...]] = ("bridge.*",)
    one_image: ClassVar[bool] = False
    needs_image: ClassVar[bool] = False

    @abstractmethod
    def composition(self, folder: ModelFolder) -> dict[str, Any]:
        """The ``model:`` section of a YAML file, as plain data, without ``train`` and ``weights``.

        Sizes are written out. Raises UserError: the folder uses something that no part can compute.
        """

    def prompt_text(self, text: str, image_token: str) -> str:
        """What transformers' processor takes as text, of a whole prompt in which an image is ``image_token``.

        Of a folder with a chat template it is not asked.
        """
        return text

    def pixels(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """``[f, 3, h, w]`` of each medium in what transformers' processor returns, to compare with ours."""
        pixels = inputs.get("pixel_values")
        return [] if pixels is None else list(pixels if pixels.dim() == 5 else pixels[:, None])
