"""Shared by the actions of ``vlm data``: the configuration, its datasets and, if possible, the model's processor."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm.cli.options import with_changes
from vlm.common.errors import ConfigError, UserError, WeightsError
from vlm.common.logging import busy, say

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.datasets.inspect.scan import Opened
    from vlm.processors.collate import VisualTokens
    from vlm.processors.image.recipe import ImageRecipe
    from vlm.processors.processor import Processor
    from vlm.processors.templates.base import BaseTemplate


@dataclass
class DataView:
    """A configuration's datasets and what encodes them; ``processor`` is None without a tokenizer."""

    cfg: Config
    datasets: list[Opened]
    processor: Processor | None
    recipe: ImageRecipe
    visual_tokens: VisualTokens
    template: BaseTemplate | None = None  # where there is no processor


def open_view(args: argparse.Namespace, model: bool = True) -> DataView:
    """Read the configuration and open its datasets (those of ``--only``); prints what is skipped, and why.

    Args:
        args: with ``cfg``, ``options`` and ``only``.
        model: also build the processor and count visual tokens.

    Raises:
        UserError: an invalid configuration, an unknown dataset in ``--only``, or no dataset at all.
    """
    from vlm.common.registry import resolve
    from vlm.datasets.inspect.scan import open_datasets, sections
    from vlm.processors.collate import VisualTokens
    from vlm.processors.processor import build_processor

    cfg = load_without_weights(args.cfg, args.options)
    entries = sections(cfg)
    unknown = [name for name in args.only if name not in entries]
    if unknown:
        raise UserError(f"--only {unknown[0]}: no such dataset", fix=f"use one of {', '.join(entries) or 'none'}")
    entries = {name: entry for name, entry in entries.items() if not args.only or name in args.only}
    if not entries and (left := unset(cfg)):
        raise UserError(
            f"{args.cfg}: no dataset can be opened; build_info is not set for {', '.join(left)}",
            fix="set the paths under datasets, or give them with --options datasets.NAME.build_info.KEY=PATH",
        )
    if not entries:
        raise UserError(f"{args.cfg} has no datasets", fix="add one under datasets:")
    recipe = resolve("image", cfg.model.image.name)(cfg.model.image.config)
    view = DataView(cfg, open_datasets(entries, recipe.config.size), None, recipe, VisualTokens())
    if (left := unset(cfg)) and not args.only:
        say(f"skipped because build_info is not set: {', '.join(left)}")
    if model:
        try:
            view.processor = build_processor(cfg.model)
            view.recipe, (positions, view.visual_tokens) = view.processor.image, count_visual_tokens(cfg)
            view.processor = view.processor.within(positions, view.visual_tokens)
        except WeightsError as error:
            say(f"no tokens, only characters: {str(error).splitlines()[0]}")
            view.template = resolve("template", cfg.model.template.name)(cfg.model.template.config)
    return view


def load_without_weights(cfg: str, options: Sequence[str]) -> Config:
    """The configuration. Unset model paths are replaced by a dummy, because inspecting data needs no weights.

    Raises ConfigError: the configuration has any other problem.
    """
    from vlm.config.api import load_config
    from vlm.config.schema import ConfigProblems

    try:
        return load_config(cfg, options, check="none")
    except ConfigProblems as error:
        open_ = [p.path for p in error.problems if p.path.startswith("model.") and p.message.startswith("must be set")]
        if len(open_) < len(error.problems):
            raise
    return load_config(cfg, with_changes(options, dict.fromkeys(open_, "not-set")), check="none")


def unset(cfg: Config) -> list[str]:
    """Datasets of the file whose build_info is not set."""
    known = {"datasets": cfg.datasets, "valid_datasets": cfg.valid_datasets}
    named = dict.fromkeys(tuple(path.split(".")[:2]) for path in cfg.origins if path.count("."))
    return [name for section, name in named if section in known and name not in known[section]]


def count_visual_tokens(cfg: Config) -> tuple[int | None, VisualTokens]:
    """Positions of the LLM, and those that media take in it, from the composition without its weights.

    If it cannot be built (an LLM folder with a tokenizer only), None and those of the configuration.
    """
    from vlm.models.build import build_model
    from vlm.processors.collate import VisualTokens

    try:
        with busy("reading the composition"):
            model = build_model(cfg.model, device="meta")
            return model.positions, VisualTokens.of(model.visual_tokens, model.counters())
    except (ConfigError, WeightsError):
        return None, VisualTokens(0, cfg.model.text.config.tokens_per_medium)
