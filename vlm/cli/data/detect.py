"""``vlm data detect``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.common.errors import DataError, UserError
from vlm.common.logging import say
from vlm.common.owned import write_own

if TYPE_CHECKING:
    from vlm.common.types import Sample
    from vlm.datasets.detect.find import Detected

SHOWN = 3
"""Samples of a dataset that are printed."""
OPEN = 1
"""Exit code if the user has to decide something before the entry can be used."""
HEADER = "# written by vlm data detect\n"


def main(args: argparse.Namespace) -> int:
    """Say which layout a file has, print the entry that reads it and some samples.

    Returns:
        0: the entry can be used; 1: it is ambiguous, or images are missing.

    Raises:
        UserError: unreadable, of no known layout, or nothing in it can be used.
    """
    from vlm.datasets.detect.catalogue import catalogue_of, described_in, detect_all
    from vlm.datasets.detect.entry import yaml_of
    from vlm.datasets.detect.find import AmbiguousError, detect

    if "://" in args.file:
        raise UserError(f"{args.file}: only files and folders are recognised", fix="download it, and name the folder")
    path, images = Path(args.file), args.images
    if images and not Path(images).is_dir():
        raise DataError(f"--images {images}: no such folder", fix="name the folder that the paths start from")
    catalogue = catalogue_of(path)
    if catalogue is None and args.only:
        raise UserError(f"--only: {path} is one dataset, it does not describe others", fix="leave --only out")
    if described := described_in(path):
        folder, name = described
        say(f"{path} is described in {folder}/dataset_info.json: vlm data detect {folder} --only {name}\n")
    try:
        found = [detect(path, images, args.layout)] if catalogue is None else []
    except AmbiguousError as error:
        say(str(error))
        return OPEN
    if catalogue is not None:
        say(f"{catalogue.file}: {catalogue.form['title']}, {len(catalogue.described)} datasets")
        for name, result in detect_all(catalogue, images, args.only):
            if isinstance(result, UserError):
                say(f"{name}: left out: {result}")
            else:
                found.append(result)
        if not found:
            raise DataError(f"{catalogue.file}: no dataset can be read")
    for result in found:
        say_detected(result, str(path) if catalogue is None else result.entry.name)
    text = yaml_of([result.entry for result in found])
    if args.to:
        write_own(args.to, HEADER + text, lambda head: head.startswith(HEADER))
        say(f"written: {args.to}")
    else:
        say(text)
    for result in found:
        say_samples(result)
    return OPEN if any(result.open for result in found) else 0


def say_detected(result: Detected, name: str) -> None:
    """Print the layout, why it is that, and what is left to decide."""
    say(f"{name}: {result.title}")
    facts = [("looked at", result.looked), *result.facts]
    if result.root is not None:
        root = result.root
        below = f" below {root.folder}" if root.folder else ""
        facts.append(("images", f"{root.found} of {root.count} files found{below}"))
    elif result.read.count:
        facts.append(("images", "in the records" if result.read.has_media else "none"))
    if result.read.count:
        facts.append(("usable", f"{len(result.read.samples)} of {result.read.count} records"))
    facts += [("to decide", text) for text in result.open]
    for label, text in facts:
        say(f"  {label:<11}{text}")
    say("")


def say_samples(result: Detected) -> None:
    """Print some samples, with the sizes of their images."""
    from vlm.datasets.inspect.render import spoken

    for sample in chosen(result.read.samples):
        say(f"{result.entry.name}: {sample.id}")
        say("\n".join(f"    {line}" for line in spoken(sample, sizes=True)))


def chosen(samples: list[Sample]) -> list[Sample]:
    """The first samples, one with an image and one without among them, where there are such."""
    with_media = [s for s in samples if any(m.media for m in s.messages)]
    without = [s for s in samples if not any(m.media for m in s.messages)]
    ordered = [*with_media[:1], *without[:1]]
    ordered += [s for s in samples if not any(s is o for o in ordered)]
    return ordered[:SHOWN]
