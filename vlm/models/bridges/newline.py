"""A learned token that ends each row of a grid, as a new line does in text (arXiv:2408.03326): of a frame, of tiles."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from vlm.common.bounds import Count
from vlm.common.errors import ConfigError
from vlm.common.registry import register_bridge
from vlm.common.types import Features, MediumShape
from vlm.models.bridges.grid import GridCount, count, with_grid
from vlm.models.counting import GRIDS, best_grid, check_grids, grid_of, margins


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


@dataclass(frozen=True)
class TileRows:
    """Counts what leaves :class:`TileRowsBridge`."""

    size: int
    grids: tuple[tuple[int, int], ...]

    def __call__(self, shape: MediumShape) -> MediumShape:
        """One frame with all tokens. Raises ConfigError: the tokens of a tile do not lie in a grid."""
        if shape.frames == 1 or shape.size is None:
            count = shape.frames * (shape.tokens + 1)
        else:
            high, wide = self.kept(shape.size, grid_of(shape))
            count = shape.tokens + high * (wide + 1)
        return dataclasses.replace(shape, frames=1, tokens=count, grid=None)

    def tiles(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tiles of an image of this height and width."""
        return best_grid(*size, self.size, self.grids)

    def kept(self, size: tuple[int, int], tokens: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens within the margins, of tiles with ``tokens`` rows and columns each."""
        rows, columns = (a * b for a, b in zip(self.tiles(size), tokens, strict=True))
        top, left = margins(*size, rows, columns)
        return rows - 2 * top, columns - 2 * left


@register_bridge("tile_rows")
class TileRowsBridge(nn.Module):
    """The whole image's tokens, then those of its tiles row by row. State-dict key: ``newline [d]``.

    It goes with the image recipe ``tiles``. A medium without tiles (one frame, or a video) keeps its frames, each ended
    by the learned token.
    """

    @dataclass
    class Config:
        """Options of ``bridge: {name: tile_rows}``, as those of the image recipe.

        Example: ``bridge: [{name: mlp}, {name: tile_rows, size: 336, grids: [[1, 2], [2, 1], [2, 2]]}]``
        """

        size: Count = 336  # side of a tile in pixels
        grids: list[list[Count]] = field(default_factory=lambda: [list(grid) for grid in GRIDS])

        def __post_init__(self) -> None:
            check_grids(self.grids, "model.bridge tile_rows")

    varies = True
    joins_frames = True

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
        """Of a medium without tiles: one more."""
        return in_tokens + 1

    def counter(self) -> TileRows:
        """See :class:`~vlm.models.protocols.CountsTokens`."""
        return TileRows(self.config.size, tuple((rows, columns) for rows, columns in self.config.grids))

    def forward(self, features: Features) -> Features:
        """``[n, f, v, d]`` -> ``[n, 1, most, d]`` with a mask where the numbers of tokens differ.

        Raises ConfigError: tokens of a tile that do not lie in a grid, or another number of tiles than the grid has.
        """
        sizes = None if features.about is None else features.about.sizes
        known = [(0, 0)] * len(features.tokens) if sizes is None else [(h, w) for h, w in sizes.tolist()]
        rows = [
            self._arranged(tokens, size, grid_of(features)) if size[0] and len(tokens) > 1 else self._plain(tokens)
            for tokens, size in zip(features.tokens, known, strict=True)
        ]
        counts = torch.tensor([len(row) for row in rows], device=features.tokens.device)
        tokens = pad_sequence(rows, batch_first=True)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        mask = None if len(set(counts.tolist())) == 1 else (places < counts[:, None])[:, None]
        return dataclasses.replace(features, tokens=tokens[:, None], mask=mask, grid=None)

    def _plain(self, tokens: Tensor) -> Tensor:
        """``[f, v, d]`` -> ``[f * (v + 1), d]``."""
        return torch.cat([tokens, self._newlines(tokens, len(tokens))], dim=1).flatten(0, 1)

    def _arranged(self, tokens: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """``[1 + tiles, v, d]`` of an image of ``size``, each tile a ``grid`` of tokens -> ``[t, d]``."""
        rows, columns = self.counter().tiles(size)
        if rows * columns != len(tokens) - 1:
            raise ConfigError(
                f"model.bridge tile_rows: {len(tokens) - 1} tiles of an image of {size[1]} x {size[0]} pixels, "
                f"expected {rows} x {columns}",
                fix="give the bridge the size and grids of the image recipe",
            )
        tiles = tokens[1:].unflatten(1, grid).unflatten(0, (rows, columns))  # [rows, columns, high, wide, d]
        whole = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        top, left = margins(*size, *whole.shape[:2])
        kept = whole[top : len(whole) - top, left : whole.shape[1] - left]
        return torch.cat([tokens[0], torch.cat([kept, self._newlines(kept, len(kept))], dim=1).flatten(0, 1)])

    def _newlines(self, tokens: Tensor, count: int) -> Tensor:
        """``[count, 1, d]``."""
        return self.newline.to(tokens.dtype).expand(count, 1, -1)
