"""``run.feature_cache``: what a run reads from a feature cache and writes to it."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.common import dist
from vlm.common.errors import ConfigError, UserError
from vlm.common.text import size_text
from vlm.config.api import Config
from vlm.models.frozen.chain import check_whole, describe_parts, frozen_parts, named_parts
from vlm.models.frozen.encode import FirstParts
from vlm.models.precision import parse_dtype
from vlm.processors.features.folder import check_folder, make_folder
from vlm.processors.features.index import Index
from vlm.processors.features.media import MediaCache, image_recipe, video_recipe
from vlm.processors.features.store import Reader, Writer
from vlm.runners.features.keep import Keeper

if TYPE_CHECKING:
    from vlm.models.vlm import VLM
    from vlm.processors.processor import Processor

log = logging.getLogger(__name__)

GB = 1e9


def check_cache(cfg: Config) -> None:
    """What is known before anything is loaded.

    Raises:
        ConfigError: the recipe of images is random, there is no vision encoder, or it trains.
        CacheError: the folder holds something else, or a cache of another version.
    """
    if cfg.run.feature_cache is None:
        return
    off = "set run.feature_cache to null"
    if cfg.model.vision is None:
        raise ConfigError("run.feature_cache: the model has no vision encoder (model.vision)", fix=off)
    if cfg.model.image.get("train") is not None:
        raise ConfigError(
            "run.feature_cache: model.image.train changes each image at random, so that no two epochs see the same",
            fix=f"set model.image.train to null, or {off}",
        )
    if glob := trains_vision(cfg.model.train):
        raise ConfigError(
            f"run.feature_cache: the vision encoder trains (model.train: {glob}), so its results change in each step",
            fix=f"freeze it, or {off}",
        )
    if cfg.run.parallel.shard == "all" and cfg.run.parallel.frozen == "shard":
        raise ConfigError(
            "run.feature_cache: with run.parallel.shard: all and frozen: shard the processes compute the vision "
            "encoder together, for the same media; with a cache each needs it for other ones",
            fix=f"set run.parallel.frozen=replicate or run.parallel.shard=llm, or {off}",
        )
    check_folder(Path(cfg.run.feature_cache.dir))


def trains_vision(globs: dict[str, bool]) -> str:
    """The glob by which some of the vision encoder trains, empty for none; names of parameters are not known yet."""
    found = ""
    for glob, on in globs.items():
        if fnmatch.fnmatchcase("vision", glob.split(".")[0]):
            found = glob if on else "" if glob in ("vision", "vision.*", "*") else found
    return found


@dataclass
class FeatureCache:
    """The cache of a run: its processor reads, its model writes.

    Example:
        ``cache = FeatureCache.open(cfg, model, processor, device, amp_dtype)``, then read data by
        ``cache.reading(processor)``, and ``cache.close()`` at the end.
    """

    folder: Path  # of the entries
    media: MediaCache
    keeper: Keeper
    parts: list[str]  # whose results are kept

    @classmethod
    def open(
        cls, cfg: Config, model: VLM, processor: Processor, device: torch.device, amp_dtype: torch.dtype | None
    ) -> FeatureCache | None:
        """The cache that ``run.feature_cache`` names, for this model; None: there is none. A collective call.

        Raises:
            ConfigError: the first visual part trains, or another reason why nothing can be kept.
            CacheError: the folder cannot be used.
        """
        options = cfg.run.feature_cache
        if options is None:
            return None
        count, reason = frozen_parts(model)
        check_whole(model, count)
        images, videos = image_recipe(processor.image), video_recipe(processor.video)
        stored = None if options.dtype == "auto" else parse_dtype(options.dtype)
        about = {
            "parts": describe_parts(model, count) if dist.is_main() else [],
            "computed": _precision(model, device, amp_dtype),
            "stored": options.dtype if stored is None else _short(stored),
        }
        about = dist.broadcast_object(about)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        recipes = {recipe.digest.hex(): recipe.about for recipe in (images, videos) if recipe is not None}
        folder = _prepared(Path(options.dir), digest, about, recipes)
        index = Index(folder)
        index.refresh()
        keeper = Keeper(Writer(folder, options.max_gb * GB), index, stored)
        model.first = FirstParts(count, keeper)
        names, parts = zip(*named_parts(model)[:count])
        because = f"; {reason}" if reason else ""
        log.info("feature cache %s: results of %s, %s entries%s", folder, " + ".join(names), f"{len(index):,}", because)
        if processor.video is not None and videos is None:
            log.warning("feature cache: videos are not kept, since model.video draws other frames in each epoch")
        return cls(folder, MediaCache(Reader(index, parts[-1].out_dim), images, videos), keeper, list(names))

    def reading(self, processor: Processor) -> Processor:
        """A copy of a processor that asks the cache before it decodes."""
        return processor.reading(self.media)

    def close(self) -> None:
        """Write what waits; the log says how much was written."""
        self.keeper.close()
        writer = self.keeper.writer
        counts = dist.gather_objects((writer.entries, writer.bytes))
        media, size = (sum(count[k] for count in counts) for k in (0, 1))
        log.info("feature cache %s: %s media written (%s)", self.folder, f"{media:,}", size_text(size))


def open_cache(
    cfg: Config, model: VLM, processor: Processor, device: torch.device, amp_dtype: torch.dtype | None
) -> tuple[Processor, Callable[[], None]]:
    """The processor that reads the data of a run, and what to call at its end; errors: :meth:`FeatureCache.open`."""
    cache = FeatureCache.open(cfg, model, processor, device, amp_dtype)
    return (processor, lambda: None) if cache is None else (cache.reading(processor), cache.close)


def _prepared(folder: Path, digest: str, about: dict[str, Any], recipes: dict[str, Any]) -> Path:
    """The folder of the entries, made by rank 0. Raises CacheError: on every rank."""
    made: Path | UserError = folder / digest
    if dist.is_main():
        try:
            made = make_folder(folder, digest, about, recipes)
        except UserError as error:
            made = error
    made = dist.broadcast_object(made)
    if isinstance(made, UserError):
        raise made
    return made


def _precision(model: VLM, device: torch.device, amp_dtype: torch.dtype | None) -> dict[str, str]:
    """What decides in which precision the first parts compute."""
    dtypes = {"autocast": amp_dtype or torch.float32, "vision": model.vision_dtype, "model": model.compute_dtype}
    return {"device": device.type, **{name: _short(dtype) for name, dtype in dtypes.items()}}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
