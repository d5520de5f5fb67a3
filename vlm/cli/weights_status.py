"""``vlm weights status``: the files that compositions need, and whether they are there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from vlm.cli.options import add_listed
from vlm.common.logging import say
from vlm.common.registry import register_command
from vlm.common.trust import trusting

MISSING = 1
"""Exit code if something is missing."""


@register_command("weights status")
class Status:
    """Files that a composition needs: found, missing, and the command that makes or fetches each.

    Nothing is fetched: paths of the composition, the downloads of this library and the cache of the Hugging Face Hub
    are looked at. Exit code 1 if something is missing.

    examples:
      vlm weights status
      vlm weights status tiny
      vlm weights status output/my_run --options model.llama_model=/models/llm
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What to look for, and changes."""
        add_listed(parser, "weights status", "options")

    def main(self, args: argparse.Namespace) -> int:
        """Print; 0: all there, 1: not. Raises ConfigError: an unknown name, or an unusable configuration."""
        from vlm.checkpoint.needed.look import look

        with trusting(args.trust):
            found = look(args.system, args.options)
        if args.json:
            say(json.dumps([plain(status) for status in found], indent=1, ensure_ascii=False))
        for status in [] if args.json else found:
            for line in lines(status):
                say(line)
        return 0 if all(status.complete for status in found) else MISSING


def lines(status: Any) -> Iterator[str]:
    """A ``CompositionStatus`` as text."""
    absent = sum(file.state in ("missing", "damaged") for file in status.files)
    told = "complete" if not absent else f"{absent} of {len(status.files)} missing"
    yield f"{status.name}: {told}{'' if status.described else ' (not described: nothing is known of its files)'}"
    width = max((len(file.param) for file in status.files), default=0)
    set_: list[str] = []
    for file in status.files:
        facts = file.facts
        state = file.state.upper() if file.state in ("missing", "damaged") else file.state
        size = "" if file.bytes is None else amount(file.bytes)
        expected = amount(facts.size_gb * 1e9) if facts is not None and facts.size_gb else ""
        sizes = f"{size} (published: {expected})" if size and expected else size or (f"{expected}" if expected else "")
        yield f"  {file.param:<{width}}  {state:<8} {sizes:<30} {file.path or 'no path is set'}".rstrip()
        if file.problem:
            yield f"      {file.problem.splitlines()[0]}"
        if file.state == "found":
            continue
        if facts is None:
            yield "      not described"
            continue
        yield f"      {facts.what}{f'; licence: {facts.licence}' if facts.licence else ''}"
        for number, way in enumerate(file.ways()):
            yield from [f"      {'or: ' if number and step == 0 else ''}{command}" for step, command in enumerate(way)]
        if facts.page:
            yield f"      {facts.page}"
        if file.ways() and not file.path and file.state == "missing":
            set_.append(f"model.{file.param}={file.target}")
    if set_:
        yield f"  then: --options {' '.join(set_)}"


def amount(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 0.95e9 else f"{count / 1e6:.1f} MB"


def plain(status: Any) -> dict[str, Any]:
    """A ``CompositionStatus`` for JSON."""
    files = [
        {
            "param": file.param,
            "state": file.state,
            "path": file.path,
            "bytes": file.bytes,
            "problem": file.problem,
            "what": file.facts.what if file.facts else "",
            "expected_bytes": int(file.facts.size_gb * 1e9) if file.facts and file.facts.size_gb else None,
            "licence": file.facts.licence if file.facts else "",
            "repository": file.facts.repository if file.facts else "",
            "page": file.facts.page if file.facts else "",
            "ways": file.ways(),
        }
        for file in status.files
    ]
    known = {"described": status.described, "complete": status.complete}
    return {"composition": status.name, **known, "files": files}
