"""Batches for the tiny composition of :mod:`vlm.testing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from vlm.common.types import Batch, Example
from vlm.config.types import ModelConfig
from vlm.models.vlm import VLM
from vlm.processors.collate import collate, collate_rows
from vlm.testing import composition, tiny_example, tiny_model


@pytest.fixture
def compose() -> Callable[..., ModelConfig]:
    return composition


@pytest.fixture
def build() -> Callable[..., VLM]:
    return tiny_model


def mixed() -> list[Example]:
    """Samples of different lengths with one, two and no image."""
    return [
        tiny_example(2, 3, 4, seed=1),
        tiny_example(0, 9, 2, media=2, seed=2),
        tiny_example(3, 0, 6, media=0, seed=3),
        tiny_example(1, 1, 1, seed=4),
    ]


@pytest.fixture
def examples() -> list[Example]:
    return mixed()


@pytest.fixture
def example() -> Callable[..., Example]:
    return tiny_example


@pytest.fixture
def batched() -> Callable[[Sequence[Example]], Batch]:
    return lambda rows: collate(rows, 0)


@pytest.fixture
def packed() -> Callable[[Sequence[Example], int], Batch]:
    def first_fit(examples: Sequence[Example], size: int) -> Batch:
        rows: list[list[Example]] = []
        for one in examples:
            fits = [row for row in rows if sum(len(e.ids) + 2 * len(e.media) for e in [*row, one]) <= size]
            fits[0].append(one) if fits else rows.append([one])
        return collate_rows(rows, 0)

    return first_fit
