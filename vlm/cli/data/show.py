"""``vlm data show``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from vlm.cli.data.open import DataView, open_view
from vlm.common.errors import DataError
from vlm.common.logging import say
from vlm.common.owned import is_page, write_own

if TYPE_CHECKING:
    from vlm.datasets.inspect.render import Shown


def main(args: argparse.Namespace) -> int:
    """Print samples of each dataset, or write them as a page.

    Raises DataError: a dataset cannot be opened, or the page cannot be written.
    """
    from vlm.datasets.inspect.render import draw_samples

    view = open_view(args)
    result = []
    for opened in view.datasets:
        if opened.source is None:
            raise DataError(f"dataset {opened.name} cannot be opened: {opened.error}")
        size = f", {opened.size:,} samples" if opened.size is not None else ""
        title = f"{opened.name} ({opened.entry.format.name}{size})"
        shown = draw_samples(opened, view.processor, args.n, args.seed, view.cfg.run.seed)
        if not shown:
            raise DataError(f"dataset {opened.name} is empty: 0 records", fix="check the paths under its build_info")
        result.append((title, shown))
    if args.html:
        write_page(view, args, result)
        return 0
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for title, samples in result:
        say(title)
        for sample in samples:
            say_sample(view, sample, colour)
    return 0


def say_sample(view: DataView, shown: Shown, colour: bool) -> None:
    """Print one sample: its tokens, or its messages if there is no tokenizer."""
    from vlm.datasets.inspect.render import describe_media, pieces, spoken, terminal_text

    if shown.sample is None:
        say(f"  {shown.name}: cannot be used: {shown.error}")
        return
    if shown.example is None or view.processor is None:
        say(f"  {shown.name}")
        say("\n".join(f"    {line}" for line in spoken(shown.sample)))
        return
    length = view.visual_tokens.fused_length(shown.example)
    say(f"  {shown.name}: {length:,} positions, {shown.example.num_targets:,} trained")
    if shown.example.cut is not None:
        say(f"    cut: {shown.example.cut}")
    for told in describe_media(shown.sample):
        say(f"    {told}")
    say(f"    {terminal_text(pieces(shown.example, view.processor.tokenizer, view.visual_tokens), colour)}")


def write_page(view: DataView, args: argparse.Namespace, found: list[tuple[str, list[Shown]]]) -> None:
    """Write the samples as one HTML file. Raises UserError if it cannot be written."""
    from vlm.pages.samples import page

    tokenizer = view.processor.tokenizer if view.processor is not None else None
    text = page(f"Samples of {args.cfg}", found, view.recipe, tokenizer, view.visual_tokens)
    write_own(args.html, text, is_page)
    say(f"written: {args.html} ({len(text) / 1024:.0f} KiB)")
