"""``vlm data shard``."""

from __future__ import annotations

import argparse

from vlm.cli.data.open import open_view
from vlm.common.errors import DataError
from vlm.common.logging import say


def main(args: argparse.Namespace) -> int:
    """Write every dataset as web shards and print the entries that read them.

    Raises UserError: a dataset cannot be opened or written.
    """
    from vlm.datasets.inspect.shards import entry_yaml, write_web_shards

    view = open_view(args, model=False)
    entries = []
    for opened in view.datasets:
        if opened.source is None:
            raise DataError(f"dataset {opened.name} cannot be opened: {opened.error}")
        done = write_web_shards(
            opened, args.out, per_shard=args.per_shard, workers=args.j, max_bad_share=view.cfg.run.max_bad_share
        )
        size = sum(s["bytes"] for s in done["shards"].values()) / 1e6
        bad = sum(s["bad"] for s in done["shards"].values())
        written = f"{done['samples']:,} samples in {len(done['shards'])} shards"
        say(f"{opened.name}: {written}, {size:,.1f} MB, {bad} left out")
        if hasattr(opened.source.dataset, "draw"):
            say("  this format makes random choices; the shards hold one fixed choice of each record")
        entries.append(entry_yaml(opened, args.out))
    say("\nto read the shards:\n")
    say("datasets:\n" + "\n".join(f"  {line}" for entry in entries for line in entry.splitlines()))
    return 0
