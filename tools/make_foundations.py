"""Make the tiny frozen foundations of the quickstart: tokenizer, LLaMA, EVA ViT, Q-Former.

    python tools/make_foundations.py --out vlm/assets/tiny            # hours on one core
    python tools/make_foundations.py --out /tmp/tiny --miniature      # every stage for a few steps

A stopped run goes on from its checkpoints in ``--work``; a finished stage is skipped.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from foundations.common import Plan  # noqa: E402

STAGES = {
    "tokenizer": ("foundations.tokenizer", "train_tokenizer"),
    "llm": ("foundations.llm", "train_llm"),
    "vit": ("foundations.vit", "train_vit"),
    "qformer": ("foundations.qformer", "train_qformer"),
}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the assets")
    parser.add_argument("--work", type=Path, help="folder of the checkpoints (default: output/foundations)")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--steps-scale", type=float, default=1.0, help="all step counts times this")
    parser.add_argument("--miniature", action="store_true", help="a few steps of every stage; useless weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)

    import torch

    torch.set_num_threads(options.threads)
    work = options.work or (options.out / "work" if options.miniature else Path("output/foundations"))
    plan = Plan(options.out, work, options.seed, options.steps_scale, options.miniature)
    for name in options.stages:
        module, function = STAGES[name]
        print(f"== {name}", flush=True)
        getattr(importlib.import_module(module), function)(plan)


if __name__ == "__main__":
    main()
