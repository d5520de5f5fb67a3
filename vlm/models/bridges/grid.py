"""Windows of neighbouring tokens, for the bridges that know where each token is in its image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm.common.errors import ConfigError
from vlm.common.types import Features, MediumShape
from vlm.models.counting import grid_of


@dataclass(frozen=True)
class GridCount:
    """Counts tokens whose grid becomes another one.

    Attributes:
        rule: rows and columns that enter -> those that leave; a function of a module, or a frozen dataclass.
    """

    rule: Callable[[int, int], tuple[int, int]]

    def __call__(self, shape: MediumShape) -> MediumShape:
        """``shape`` with the tokens and grid that leave. Raises ConfigError: they do not lie in a grid, or fit not."""
        rows, columns = self.rule(*grid_of(shape))
        return dataclasses.replace(shape, tokens=rows * columns, grid=(rows, columns))


@dataclass(frozen=True)
class Divided:
    """Grids divided into squares of ``side`` tokens by the bridge ``name``."""

    side: int
    name: str

    def __call__(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of squares. Raises ConfigError: they do not divide."""
        if rows % self.side or columns % self.side:
            raise ConfigError(
                f"model.bridge {self.name}: {rows} x {columns} tokens do not divide into squares of {self.side}",
                fix="choose another side, or images whose rows and columns of patches are multiples of it",
            )
        return rows // self.side, columns // self.side


def count(rule: Any, tokens: int) -> int:
    """Tokens of a square of ``tokens`` after ``rule``. Raises ConfigError: as :class:`GridCount`."""
    return GridCount(rule)(MediumShape(tokens=tokens)).tokens


def with_grid(features: Features, tokens: Tensor, rows: int, columns: int, mask: Tensor | None = None) -> Features:
    """``features`` with other ``tokens [n, f, rows * columns, d]``, which lie in that grid, and their mask."""
    grid = torch.tensor([[rows, columns]]).expand(len(tokens), 2)
    return dataclasses.replace(features, tokens=tokens, mask=mask, grid=grid)


def squares(features: Features, rule: Divided) -> Features:
    """Each square of tokens as one token: ``[n, f, v, d]`` -> ``[n, f, v / side^2, side^2 * d]``.

    Within it tokens follow one another row by row. One that is not real makes its square not real. Raises ConfigError:
    the tokens are not a grid, or do not divide into squares.
    """
    rows, columns = rule(*grid_of(features))
    tokens, mask, side = features.tokens, features.mask, rule.side

    def joined(value: Tensor) -> Tensor:
        cut = value.unflatten(2, (rows, side, columns, side))
        return cut.transpose(3, 4).flatten(4).flatten(2, 3)

    real = None if mask is None else joined(mask[..., None]).all(dim=-1)
    return with_grid(features, joined(tokens), rows, columns, real)


def as_images(features: Features) -> Tensor:
    """Tokens ``[n, f, v, d]`` as feature maps ``[n * f, d, rows, columns]``.

    Raises ConfigError: they do not lie in a grid, or some of them are padding.
    """
    if features.mask is not None and not bool(features.mask.all()):
        raise ConfigError(
            "model.bridge: tokens of which some are padding are not an image; pool before they are joined"
        )
    return features.tokens.flatten(0, 1).transpose(1, 2).unflatten(2, grid_of(features))


def from_images(maps: Tensor, features: Features) -> Features:
    """Feature maps ``[n * f, d, rows, columns]`` as ``features`` with these tokens, all real."""
    tokens = maps.flatten(2).transpose(1, 2).unflatten(0, features.tokens.shape[:2])
    return with_grid(features, tokens, *maps.shape[-2:])
