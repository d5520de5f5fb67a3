"""Lengths of samples, and the padding of each batching mode, measured with the code that makes the batches."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlm.common.types import Example
from vlm.config.run import Packing
from vlm.datasets.loading.batching import Assembler, FirstFitPacker, LengthGrouped
from vlm.datasets.loading.worker import EncodedSample, WorkerResult

PERCENTILES = (5, 50, 90, 99)
"""Percentiles that a report shows, besides the mean and the largest."""

MAX_SAMPLES = 20_000
"""Maximum number of samples in an estimate; larger datasets are sampled."""

MIN_SAMPLES = 2_000
"""Minimum number of samples in an estimate; smaller datasets are repeated."""

DEFAULT_GROUP = 50
"""Batches sorted together if ``run.group_by_length`` is off."""


def percentiles(lengths: Sequence[int]) -> dict[str, int]:
    """``{"mean", "p5", "p50", "p90", "p99", "max"}``; empty for no lengths."""
    if not lengths:
        return {}
    ordered = sorted(lengths)
    result = {f"p{share}": ordered[min(len(ordered) * share // 100, len(ordered) - 1)] for share in PERCENTILES}
    return {"mean": round(sum(ordered) / len(ordered)), **result, "max": ordered[-1]}


def padding_by_mode(
    lengths: Sequence[int], media: Sequence[int], batch_size: int, group: int = 0, packing: Packing | None = None
) -> dict[str, float]:
    """Share of positions that are padding: ``as_they_come``, ``grouped`` by length and ``packed``.

    Args:
        lengths: positions of each sample in the LLM.
        media: images and videos of each sample.
        batch_size: samples of a batch.
        group: batches sorted together (``run.group_by_length``); 0: 50.
        packing: ``run.packing``; None: rows of 2048 positions, or more if a sample is longer.
    """
    if not lengths:
        return {}
    packing = packing or Packing(max_tokens=max(2048, max(lengths)))
    rows = 2 * packing.open_rows * packing.max_tokens // max(sum(lengths) // len(lengths), 1)
    rng, order = random.Random(0), list[int]()
    while len(order) < max(MIN_SAMPLES, min(rows, MAX_SAMPLES)):  # a small dataset is repeated, as in training
        order += rng.sample(range(len(lengths)), len(lengths))
    order = order[:MAX_SAMPLES]
    items = [EncodedSample((0, 0, k), Example([], [], [None] * media[k]), lengths[k]) for k in order]  # type: ignore[list-item]
    size = min(batch_size, len(items))
    batches = [[[i] for i in items[k : k + size]] for k in range(0, len(items), size)]
    pool = max(min(group or DEFAULT_GROUP, len(items) // size), 1)
    grouped = _made(LengthGrouped(pool, [size], True, 0), items, size)
    packed = _made(FirstFitPacker(packing.max_tokens, packing.max_media, packing.open_rows, 1), items, size)
    wasted = _waste(packed, packing.max_tokens)
    result = {"as_they_come": _waste(batches), "grouped": _waste(grouped), "packed": wasted}
    return {way: share for way, share in result.items() if share is not None}


def _made(assembler: Assembler, items: list[EncodedSample], size: int) -> list[list[list[EncodedSample]]]:
    """The batches made of ``items``, without those still pending."""
    batches: list[list[list[EncodedSample]]] = []
    for k in range(0, len(items), size):
        assembler.add(WorkerResult(items[k : k + size]))
        batches += iter(assembler.pop, None)
    return batches


def _waste(batches: list[list[list[EncodedSample]]], row: int = 0) -> float | None:
    """Padding; None without a batch. ``row``: positions of every row; 0: those of the longest row of the batch."""
    used = [[sum(item.tokens for item in items) for items in rows] for rows in batches]
    positions = sum(len(rows) * (row or max(rows)) for rows in used)
    return 1 - sum(map(sum, used)) / positions if positions else None
