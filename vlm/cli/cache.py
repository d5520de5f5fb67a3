"""``vlm cache``: fill a feature cache ahead of a run, show what is in one, clear one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm.cli.options import add_listed, source_of
from vlm.common.errors import UserError
from vlm.common.logging import say
from vlm.common.registry import register_command
from vlm.common.text import size_text


@register_command("cache")
class Cache:
    """Fill the feature cache of a run ahead; `cache info DIR` and `cache clear DIR` show and clear one.

    examples:
      vlm cache mine.yaml --options run.feature_cache.dir=features
      torchrun --nproc-per-node 8 -m vlm.cli cache mine.yaml
      vlm cache info features
      vlm cache clear features
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The configuration of the run, and changes."""
        add_listed(parser, "cache", "options")

    def main(self, args: argparse.Namespace) -> int:
        """Fill it. Raises UserError: anything the user can fix, or the cache is full before all is in it."""
        from vlm.config.api import load_config

        source = source_of(args, "vlm cache mine.yaml")
        cfg = load_config(source, args.options, check="all", train=True, trust=True)
        from vlm.common.dist import world_from_env
        from vlm.runners.features.fill import fill_cache

        filled = fill_cache(cfg)
        if world_from_env().rank == 0:
            say(str(filled))
        if filled.stopped:
            raise UserError(f"not all features are in the cache: {filled.stopped}", fix="make room, then run it again")
        return 0


@register_command("cache info")
class Info:
    """What is in a feature cache: whose results, of which recipes, how many.

    example:
      vlm cache info features
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The folder."""
        add_listed(parser, "cache info")

    def main(self, args: argparse.Namespace) -> int:
        """Print it. Raises CacheError: the folder is not a feature cache."""
        from vlm.processors.features.folder import CacheError, check_folder

        if not check_folder(args.folder):
            raise CacheError(
                f"{args.folder}: no feature cache is there", fix="name the folder of run.feature_cache.dir"
            )
        for text in info(args.folder):
            say(text)
        return 0


@register_command("cache clear")
class Clear:
    """Delete the files of a feature cache, and no others.

    example:
      vlm cache clear features
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The folder."""
        add_listed(parser, "cache clear")

    def main(self, args: argparse.Namespace) -> int:
        """Delete. Raises CacheError: the folder is not a feature cache, or a file cannot be deleted."""
        from vlm.processors.features.folder import clear

        size, left = clear(args.folder)
        say(f"{args.folder}: {size_text(size)} deleted")
        if left:
            say(f"{len(left)} other files stay, the first is {left[0]}")
        return 0


def info(folder: Path) -> Iterator[str]:
    """The lines of ``vlm cache info``."""
    from vlm.processors.features.folder import ABOUT, RECIPE, parts_of, read_json, used_bytes
    from vlm.processors.features.index import Index

    parts = parts_of(folder)
    yield f"{folder}: {size_text(used_bytes(folder))}, parts of {len(parts)} model{'s' * (len(parts) != 1)}"
    for path in parts:
        index, about = Index(path), read_json(path / ABOUT)
        index.refresh()
        counts = index.by_recipe()
        media, size = (sum(count[k] for count in counts.values()) for k in (0, 1))
        computed = _mapping(about.get("computed"))
        each = f", {size_text(size // media)} each" if media else ""
        yield f"\n{path.name}: {media:,} media, {size_text(size)}{each}"
        found = about.get("parts")
        for part in map(_mapping, found if isinstance(found, list) else []):
            name, kind, weights = (_shown(part.get(key)) for key in ("name", "class", "weights"))
            yield f"  {name:<10}{kind.rpartition('.')[2]:<20}weights {weights[:16]}"
        yield f"  computed  {', '.join(f'{_shown(key)} {_shown(value)}' for key, value in computed.items())}"
        yield f"  stored    {_shown(about.get('stored'))}"
        names = sorted(m.group(1) for file in path.iterdir() if (m := RECIPE.fullmatch(file.name)))
        for name in names:
            recipe = read_json(path / f"recipe-{name}.json")
            own = counts.get(name, (0, 0))
            yield f"  recipe    {name}: {own[0]:,} media; {describe(recipe)}"
        if index.damaged:
            yield f"  {index.damaged:,} lines of the index are damaged and left out"


def describe(recipe: dict[str, Any]) -> str:
    """A recipe in a few words."""
    words = []
    for kind in ("video", "image"):
        options = _mapping(recipe.get(kind))
        shown = ("size", "resize", "num_frames", "sampling", "longest", "most")
        given = " ".join(f"{key} {_shown(options[key])}" for key in shown if key in options)
        words += [f"{_shown(options.get('class')).rpartition('.')[2]} {given}".strip()] if options else []
    return ", ".join(words)


def _mapping(value: Any) -> dict[str, Any]:
    """``value`` if it is a mapping, else an empty one: the folder may be from anywhere."""
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    """A value as text for a terminal, not too long."""
    return "".join(c for c in str("" if value is None else value)[:80] if c.isprintable())
