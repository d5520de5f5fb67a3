"""``vlm cache CFG``: fill a feature cache before a run, by one process or several."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlm.checkpoint.formats.base import CheckpointFormat
from vlm.checkpoint.load import RANDOM, declared_random, infer, load_file, load_model, resolve_path, unfilled
from vlm.common import dist
from vlm.common.errors import ConfigError
from vlm.common.registry import resolve
from vlm.common.text import size_text
from vlm.common.types import Batch
from vlm.config.api import Config
from vlm.datasets.loading.sources import build_sources
from vlm.datasets.loading.valid_loader import ValidLoader
from vlm.models.build import build_model, build_visual, check_images, set_precision
from vlm.models.frozen.chain import frozen_parts
from vlm.models.frozen.encode import keep_missing
from vlm.models.trainable import select_trainable
from vlm.processors.collate import VisualTokens
from vlm.processors.processor import Processor, build_processor
from vlm.runners.features.cache import FeatureCache, check_cache
from vlm.runners.train.optim import pick_precision
from vlm.runners.train.step import amp_context

if TYPE_CHECKING:
    from vlm.models.vlm import VLM

log = logging.getLogger(__name__)

_REPORT = 30.0
"""Seconds between lines about the progress."""


@dataclass
class Filled:
    """What filling a cache did, over all processes."""

    folder: str
    there: int = 0  # media that were there already
    computed: int = 0
    other: int = 0  # media that no cache keeps
    written: int = 0  # fewer than ``computed`` if an image occurs more than once
    bytes: int = 0
    seconds: float = 0.0
    stopped: str = ""  # why a process wrote no more

    def __str__(self) -> str:
        lines = [
            f"feature cache {self.folder}: {self.there:,} media were there, {self.computed:,} computed, "
            f"{self.written:,} written ({size_text(self.bytes)}) in {self.seconds:.1f} s"
        ]
        if self.other:
            lines.append(f"{self.other:,} media are not encoded images or videos, and are not kept")
        return "\n".join(lines)


def fill_cache(cfg: Config) -> Filled:
    """Keep the features of all media of the training and validation data. A collective call.

    Raises:
        ConfigError: no ``run.feature_cache``, or a reason why nothing can be kept.
        UserError: data or weights that cannot be used.
    """
    if cfg.run.feature_cache is None:
        raise ConfigError(
            "run.feature_cache is not set, so there is no cache to fill",
            fix="add it to the file, or --options run.feature_cache.dir=FOLDER",
        )
    check_cache(cfg)
    with dist.joined(cfg.run.device, cfg.run.num_workers) as (world, device):
        dist.seed_everything(cfg.run.seed, world.rank, cfg.run.deterministic)
        return _fill(cfg, device)


def _fill(cfg: Config, device: torch.device) -> Filled:
    precision = pick_precision(cfg.run.amp, cfg.run.amp_dtype, device)
    model = load_visual(cfg, device, precision.amp_dtype or torch.float32)
    check_images(model, cfg.model.image)
    visual_tokens = VisualTokens.of(model.visual_tokens, model.counters())
    processor = build_processor(cfg.model).within(model.positions, visual_tokens)
    cache = FeatureCache.open(cfg, model, processor, device, precision.amp_dtype)
    assert cache is not None
    result, started, reported = Filled(str(cache.folder)), time.monotonic(), time.monotonic()
    writer = cache.keeper.writer
    for batch in batches_of(cfg, cache.reading(processor)):
        if batch.stored is None:
            result.other += len(batch.media_row)
            continue
        known = sum(medium is not None for medium in batch.stored.media)
        result.there += batch.stored.hits
        result.other += len(batch.stored.media) - known
        with amp_context(device, precision):
            result.computed += keep_missing(model, batch.to(device), batch.stored)
        if writer.stopped:
            break
        if time.monotonic() - reported > _REPORT:
            reported = time.monotonic()
            log.info("%s media there, %s computed", f"{result.there:,}", f"{result.computed:,}")
    cache.close()
    result.written, result.bytes, result.stopped = writer.entries, writer.bytes, writer.stopped
    result.seconds = time.monotonic() - started
    return _summed(result)


def _summed(own: Filled) -> Filled:
    """What all processes did; the seconds of the slowest."""
    every = dist.gather_objects(asdict(own))
    counts = {key: sum(one[key] for one in every) for key in ("there", "computed", "other", "written", "bytes")}
    stopped = next((one["stopped"] for one in every if one["stopped"]), "")
    return Filled(own.folder, **counts, seconds=max(one["seconds"] for one in every), stopped=stopped)


def batches_of(cfg: Config, processor: Processor) -> Iterator[Batch]:
    """Each sample of the training and validation data once, shared among the processes."""
    ranks: dict[str, Any] = {"rank": dist.rank(), "world_size": dist.world_size(), "num_workers": cfg.run.num_workers}
    for section, use in ((cfg.datasets, "train"), (cfg.valid_datasets, "eval")):
        if entries := {name: entry for name, entry in section.items() if entry.sample_ratio != 0}:
            yield from ValidLoader(build_sources(entries, processor, use), processor, seed=cfg.run.seed, **ranks)


def load_visual(cfg: Config, device: torch.device, dtype: torch.dtype) -> VLM:
    """The model with weights of its visual parts only; the LLM takes no memory (device ``meta``).

    With first parts that no file fills, such as encoders declared ``random``, the whole model is built as a run
    builds it, so that they get the same random numbers.

    Raises:
        UserError: as :func:`vlm.checkpoint.load.load_model`.
    """
    files = [w for w in cfg.model.weights if w.path or w.format == RANDOM]
    loaders = [(w, resolve("checkpoint_format", w.format)(w.into)) for w in files if w.format != RANDOM]
    model_cfg, _ = infer(cfg.model, loaders)
    full = [loader for _, loader in loaders if isinstance(loader, CheckpointFormat)]
    covered = [part for loader in full for part in loader.covered_parts(model_cfg)]
    model = build_model(model_cfg, device="meta", dtype=dtype, uninitialised=covered, meant_for=device)
    with device:
        visual = build_visual(model_cfg, model.llm.hidden_size, covered)
    model.vision, model.bridge = visual.vision, visual.bridge
    select_trainable(model, model_cfg.train)
    set_precision(model, model_cfg, dtype, device)
    loaded = declared_random(model, [w for w in files if w.format == RANDOM])
    random = set(loaded)
    for weight, loader in loaders:
        loaded |= load_file(model, loader, resolve_path(str(weight.path)), loaded, weight.allow_nonfinite)
    count, _ = frozen_parts(model)
    first = ("vision.", *(f"bridge.{k}." for k in range(count - 1)))
    if [name for name in unfilled(model, loaded - random) if name.startswith(first)]:
        return load_model(cfg, device=device, dtype=dtype)
    return model.eval()
