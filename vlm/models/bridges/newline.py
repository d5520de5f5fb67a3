"""A learned token that ends each row of a grid, as a new line does in text (arXiv:2408.03326, appendix)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vlm.common.registry import register_bridge
from vlm.common.types import Features, MediumShape
from vlm.models.bridges.grid import GridCount, count, with_grid
from vlm.models.counting import grid_of


def one_column_more(rows: int, columns: int) -> tuple[int, int]:
    """The grid with its new lines."""
    return rows, columns + 1


@dataclass(frozen=True)
class OneMore:
    """One token more in each frame; they do not lie in a grid any more."""

    def __call__(self, shape: MediumShape) -> MediumShape:
        """``shape`` with it."""
        return dataclasses.replace(shape, tokens=shape.tokens + 1, grid=None)


@register_bridge("newline")
class Newline(nn.Module):
    """A learned vector after each row of the grid, or after each frame. State-dict key: ``newline [d]``."""

    @dataclass
    class Config:
        """Options of ``bridge: {name: newline}``. Example: ``bridge: [{name: mlp}, {name: newline}]``"""

        after: Literal["row", "frame"] = "row"

    varies = False

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = in_dim
        self.newline = nn.Parameter(torch.empty(in_dim))
        nn.init.normal_(self.newline, std=in_dim**-0.5)

    def no_weight_decay(self) -> list[str]:
        """``newline``."""
        return ["newline"]

    def num_tokens(self, in_tokens: int) -> int:
        """One more for each row, or for the frame. Raises ConfigError: tokens that are not a square have no rows."""
        return count(one_column_more, in_tokens) if self.config.after == "row" else in_tokens + 1

    def counter(self) -> GridCount | OneMore:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return GridCount(one_column_more) if self.config.after == "row" else OneMore()

    def forward(self, features: Features) -> Features:
        """``[n, f, v, d]`` -> ``[n, f, num_tokens(v), d]``. Raises ConfigError: the tokens lie in no grid."""
        tokens, mask = features.tokens, features.mask
        if self.config.after == "frame":
            mask = None if mask is None else pad(mask, (0, 1), value=True)
            return dataclasses.replace(features, tokens=self._ended(tokens), mask=mask, grid=None)
        rows, columns = grid_of(features)
        if mask is not None:
            mask = pad(mask.unflatten(2, (rows, columns)), (0, 1), value=True).flatten(2)
        ended = self._ended(tokens.unflatten(2, (rows, columns))).flatten(2, 3)
        return with_grid(features, ended, rows, columns + 1, mask)

    def _ended(self, tokens: Tensor) -> Tensor:
        """``[..., v, d]`` -> ``[..., v + 1, d]``."""
        return torch.cat([tokens, self.newline.to(tokens.dtype).expand(*tokens.shape[:-2], 1, -1)], dim=-2)
