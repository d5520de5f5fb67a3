"""Images divided into tiles, against the image processor and the processor of transformers."""

from __future__ import annotations

import io
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from vlm.common.errors import ConfigError, DataError
from vlm.common.types import Prepared, Split
from vlm.processors.image.split import SplitRecipe, enlarged, whole_tiles

SIDE = 28
SIZES = ((28, 28), (200, 300), (300, 200), (10, 500), (500, 9), (1, 1), (84, 84), (85, 84), (57, 131), (333, 334))


def image(height: int, width: int, seed: int = 0) -> PILImage.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PILImage.fromarray(levels)


def recipe(**options: Any) -> SplitRecipe:
    return SplitRecipe(SplitRecipe.Config(size=SIDE, longest=3 * SIDE, **options))


def tiles(split: Split) -> torch.Tensor:
    return torch.cat([piece.pixels for piece in split.pieces if isinstance(piece, Prepared)])


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_those_of_transformers(size: tuple[int, int], divide: bool) -> None:
    from transformers import Idefics3ImageProcessorPil

    theirs = Idefics3ImageProcessorPil(
        size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=divide
    )
    found = theirs(images=image(*size), return_tensors="pt", return_row_col_info=True)
    ours = recipe(divide=divide)(image(*size))
    torch.testing.assert_close(tiles(ours), found["pixel_values"][0], rtol=0, atol=1e-6)
    texts = [piece for piece in ours.pieces if isinstance(piece, str)]
    rows, columns = int(found["rows"][0][0]), int(found["cols"][0][0])
    assert sum("<row_" in text for text in texts) == rows * columns
    assert texts[-2:] == [("\n" if rows else "") + "<fake_token_around_image><global-img>", "<fake_token_around_image>"]
    if rows:
        assert texts[0] == "<fake_token_around_image><row_1_col_1>"
        assert texts[columns : columns + 1] == ["\n"]


def test_levels_become_the_same_pixels() -> None:
    source = image(100, 60)
    plain, levels = recipe(), recipe().as_uint8()
    found = tiles(levels(source))
    assert found.dtype == torch.uint8
    assert torch.equal(plain.normalize(found), tiles(plain(source)))


def test_what_it_made_passes_through_and_pickles() -> None:
    made = recipe()(image(40, 90))
    again = pickle.loads(pickle.dumps(recipe()))(made, "x", random.Random(0))
    assert again is made
    assert {p.size for p in made.pieces if isinstance(p, Prepared)} == {(40, 90)}


def test_a_damaged_image_is_named() -> None:
    data = io.BytesIO()
    image(30, 30).save(data, "PNG")
    with pytest.raises(DataError, match="image of a test"):
        recipe()(data.getvalue()[:60], "of a test")


def test_options_that_make_no_sense() -> None:
    for options, text in (
        ({"longest": 10}, "longest is 10, allowed"),
        ({"tile_text": "<{tile}>"}, "has a field besides row and column"),
    ):
        with pytest.raises(ConfigError, match=text):
            SplitRecipe.Config(size=28, **options)


def test_sizes() -> None:
    assert enlarged(200, 300, 2048) == (1366, 2048)
    assert enlarged(300, 100, 2048) == (2048, 682)
    assert whole_tiles(1366, 2048, 512) == (1536, 2048)
    assert whole_tiles(2048, 682, 512) == (2048, 1024)
