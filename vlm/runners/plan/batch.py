"""The batches of a run before it starts: of its own data without decoding images, or of lengths that the user gives."""

from __future__ import annotations

import copy
import dataclasses
import random
import statistics
from dataclasses import dataclass
from typing import Any

import torch

from vlm.common.dist import World
from vlm.common.errors import DataError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Example
from vlm.models.vlm import VLM
from vlm.processors.collate import VisualTokens, collate_rows
from vlm.processors.processor import Processor, build_processor
from vlm.runners.train.run import build_loader

SAMPLES = 256
"""Samples that are read, at least :data:`FEWEST` batches of them."""
FEWEST, MOST = 4, 64
QUESTION = 16
"""Tokens of the question about a medium, for a bridge that reads it, where no data says."""


@dataclass(frozen=True)
class Lengths:
    """Samples as the user describes them."""

    tokens: int  # of text, all of them supervised
    images: int = 1


@dataclass
class Batches:
    """Micro-batches of one process.

    Attributes:
        typical: of median length, for time.
        largest: the longest that was seen, for memory.
        micro: micro-batches of a step.
        samples: of a step, of all processes.
        steps: optimiser steps of the run; None: not known.
        source: where the lengths are from, for the page.
    """

    typical: Batch
    largest: Batch
    micro: int
    samples: int
    steps: int | None
    source: str
    positions: list[int]


class BlankImages:
    """An image recipe that opens no file: every image becomes the same empty square."""

    def __init__(self, recipe: Any) -> None:
        self.recipe, self.config = recipe, recipe.config
        self.splits, self.fixed_size, self.decoded = False, True, 0
        self.pixels = torch.zeros(1, 1, 1).expand(3, recipe.config.size, recipe.config.size)

    def __call__(self, image: Any, label: str, rng: random.Random | None = None) -> torch.Tensor:
        """``[3, size, size]``."""
        return self.pixels

    def normalize(self, pixels: torch.Tensor, pin_memory: bool = False) -> torch.Tensor:
        """``pixels``."""
        return pixels


def batches_of(cfg: Any, model: VLM, processes: int, lengths: Lengths | None) -> Batches:
    """The batches of ``cfg``; see :func:`from_data` and :func:`from_lengths`.

    Raises:
        DataError: there are no data to read, and no lengths are given.
        UserError: the data or their processor cannot be used.
    """
    if lengths is not None:
        return from_lengths(cfg, model, processes, lengths)
    if not cfg.datasets:
        raise DataError(
            "no dataset of this configuration can be read, so that the lengths of its samples are not known",
            fix="set datasets.NAME.build_info, or describe the samples: --tokens 512 --images 1",
        )
    return from_data(cfg, model, processes)


def from_data(cfg: Any, model: VLM, processes: int) -> Batches:
    """Batches as the run's loader makes them; images are not opened where all become the same size.

    Raises UserError: as the loader.
    """
    run = cfg.run
    visual_tokens = VisualTokens.of(model.visual_tokens, model.counters())
    processor = build_processor(cfg.model).within(model.positions, visual_tokens)
    cfg = dataclasses.replace(cfg, run=dataclasses.replace(run, num_workers=0, max_bad_share=1.0, max_cut_share=1.0))
    loader = build_loader(
        cfg, without_files(processor), visual_tokens, World(size=processes), torch.device("cpu"), None
    )
    found: list[Batch] = []
    counts: list[int] = []  # micro-batches of each step that was drawn
    while len(found) < FEWEST or (sum(b.num_samples for b in found) < SAMPLES and len(found) < MOST):
        step = loader.step(1)  # without run.global_batch one micro-batch
        counts.append(len(step))
        found += step
    loader.close()
    found.sort(key=lambda batch: sum(positions_of(batch, visual_tokens)))
    seen = sum(batch.num_samples for batch in found)
    typical = found[len(found) // 2]
    micro = max(counts) if run.global_batch else run.accum_grad_iters * max(1, len(loader.groups))
    samples = run.global_batch or typical.num_samples * micro * processes
    steps = run.total_steps
    if steps is None and loader.steps_per_epoch:
        steps = run.max_epoch * max(loader.steps_per_epoch // run.accum_grad_iters, 1)
    lengths = [n for batch in found for n in positions_of(batch, visual_tokens)]
    source = f"{seen} samples of {', '.join(cfg.datasets)}, drawn as the run does"
    return Batches(typical, found[-1], micro, samples, steps, source, lengths)


def without_files(processor: Processor) -> Processor:
    """A copy that opens no image, where every image becomes one square of the same size."""
    if not processor.image.fixed_size or processor.image.splits:
        return processor
    other = copy.copy(processor)
    other.image = BlankImages(processor.image)  # type: ignore[assignment]
    return other


def positions_of(batch: Batch, visual_tokens: VisualTokens) -> list[int]:
    """Positions of each sample of a batch in the LLM, its media included."""
    frames = batch.frames.tolist() if batch.frames is not None else None
    result: list[int] = []
    for row in range(len(batch.ids)):
        for number in range(1, int(batch.segments[row].max()) + 1):
            own = batch.segments[row] == number
            count = int(own.sum())
            media = [
                k for k in range(len(batch.media_row)) if int(batch.media_row[k]) == row and own[batch.media_pos[k]]
            ]
            for k in media:
                most = 1 if batch.pixels is None else batch.pixels.shape[1]
                count += visual_tokens.per_medium + visual_tokens.per_frame * (frames[k] if frames else most) - 1
            result.append(count)
    return result


def from_lengths(cfg: Any, model: VLM, processes: int, lengths: Lengths) -> Batches:
    """Batches of equal samples, in rows of ``run.packing.max_tokens`` if they are packed.

    Raises DataError: a sample does not fit into a packed row.
    """
    run, size = cfg.run, batch_size_of(cfg)
    image = max(1, model.vision.image_size if model.vision is not None else 1)
    images = lengths.images if model.vision is not None else 0
    medium = torch.zeros(1, 1, 1, 1).expand(1, 3, image, image)
    ids = [MEDIA_TOKEN] * images + [1] * lengths.tokens
    labels = [IGNORE_INDEX] * (images + 1) + [1] * (lengths.tokens - 1)
    example = Example(ids, labels, [medium] * images, "planned", texts=[[1] * QUESTION] * images)
    positions = lengths.tokens + images * model.visual_tokens()
    in_row = 1
    if run.packing is not None:
        in_row = run.packing.max_tokens // positions
        if run.packing.max_media is not None and images:
            in_row = min(in_row, run.packing.max_media // images)
        if in_row < 1:
            raise DataError(
                f"a sample of {positions} positions and {images} images does not fit into a row of run.packing",
                fix="raise run.packing.max_tokens or max_media, or give shorter samples",
            )
    groups = max(1, groups_of(cfg))
    if run.global_batch:
        own = -(-run.global_batch // (processes * groups))
        rows = -(-own // in_row)
        micro = -(-rows // size)
        in_row, size = min(in_row, own), -(-rows // micro)
    else:
        micro = run.accum_grad_iters
    batch = collate_rows([[example] * in_row] * size, pad_id=0)
    samples = run.global_batch or batch.num_samples * micro * groups * processes
    shown = f"samples of {lengths.tokens} text tokens and {images} images, as given"
    return Batches(batch, batch, micro * groups, samples, run.total_steps, shown, [positions] * batch.num_samples)


def groups_of(cfg: Any) -> int:
    """Groups of datasets whose batches a step has one of each, with ``mixing: joint``."""
    entries = cfg.resolved.get("datasets") or {}
    return len({entry.get("group") for entry in entries.values()}) if cfg.run.mixing == "joint" else 1


def batch_size_of(cfg: Any) -> int:
    """Samples (packed: rows) of a micro-batch; the largest of the datasets' where each has its own."""
    if cfg.run.batch_size is not None:
        return int(cfg.run.batch_size)
    if cfg.datasets:
        return max(entry.batch_size for entry in cfg.datasets.values())
    entries = cfg.resolved.get("datasets") or {}
    return max([int(entry.get("batch_size") or 1) for entry in entries.values()] or [cfg.run.batch_size_train or 1])


def with_batch_size(cfg: Any, size: int) -> Any:
    """A copy of ``cfg`` whose micro-batches have ``size`` samples."""
    datasets = {name: dataclasses.replace(entry, batch_size=size) for name, entry in cfg.datasets.items()}
    stored = {name: {**entry, "batch_size": size} for name, entry in (cfg.resolved.get("datasets") or {}).items()}
    run = cfg.run if cfg.run.batch_size is None else dataclasses.replace(cfg.run, batch_size=size)
    if not datasets and not stored:
        run = dataclasses.replace(run, batch_size_train=size)
    return dataclasses.replace(cfg, datasets=datasets, run=run, resolved={**cfg.resolved, "datasets": stored})


def summary(positions: list[int]) -> dict[str, float]:
    """Shortest, median and longest of the samples' positions."""
    return {"shortest": min(positions), "median": statistics.median(positions), "longest": max(positions)}
