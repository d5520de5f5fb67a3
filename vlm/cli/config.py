"""``vlm config``: show a resolved configuration, check files, compare two."""

from __future__ import annotations

import argparse
import sys

from vlm.cli.options import add_listed
from vlm.common.errors import ConfigError, WeightsError
from vlm.common.logging import say
from vlm.common.registry import register_command

ACTIONS = {
    "show": "the resolved configuration as YAML",
    "check": "report all problems of files; exit code 2 if there are any",
    "diff": "show the values that differ between two files, or from the defaults",
}


@register_command("config")
class ConfigCommand:
    """Show, check or compare configurations.

    examples:
      vlm config show tiny/stage1_pretrain --origin
      vlm config check mine.yaml
      vlm config diff mine.yaml tiny/stage1_pretrain
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """``show CFG``, ``check CFG...``, ``diff A [B]``."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="show|check|diff")
        for name, about in ACTIONS.items():
            add_listed(actions.add_parser(name, help=about), f"config {name}", "options")

    def main(self, args: argparse.Namespace) -> int:
        """Run the action; the exit code. Raises ConfigError: an unusable configuration."""
        return {"show": show, "check": check, "diff": diff}[args.action](args)


def show(args: argparse.Namespace) -> int:
    """Print the resolved configuration."""
    from vlm.config.api import effective, flat, load_config
    from vlm.config.tree import to_yaml

    cfg = load_config(args.cfg, args.options, check="none")
    if not args.origin:
        say(to_yaml(effective(cfg)), end="")
        return 0
    for path, value in flat(effective(cfg)).items():
        say(f"{path} = {value!r}  # {cfg.origins.get(path, 'default')}")
    return 0


def check(args: argparse.Namespace) -> int:
    """Check every file, and that its model can be built and its weight files fit; print problems to stderr.

    The tokenizer and the template must be usable, too.
    """
    from vlm.checkpoint.fits import misfits
    from vlm.config.api import load_config
    from vlm.config.schema import ConfigProblems
    from vlm.processors.processor import build_processor

    bad = 0
    for name in args.cfg:
        try:
            cfg = load_config(name, args.options, check="needed")
            if problems := misfits(cfg):
                raise ConfigProblems(name, problems)
            if cfg.model.text.get("tokenizer") or cfg.model.llm.get("path"):
                build_processor(cfg.model)
            say(f"{name}: ok")
            for key, why in cfg.no_effect.items():
                say(f"  {key} has no effect here: {why}")
        except (ConfigError, WeightsError) as error:
            bad += 1
            say(f"error: {error}", sys.stderr)
    return 2 if bad else 0


def diff(args: argparse.Namespace) -> int:
    """Print the values that differ; without a second file, those that the file and ``--options`` set."""
    from vlm.config.api import effective, flat, load_config

    cfg = load_config(args.cfg, args.options, check="none")
    mine = flat(effective(cfg))
    if args.other is None:
        for path, value in mine.items():
            default = cfg.defaults.get(path)
            written = cfg.origins.get(path, "").startswith((str(args.cfg), "--options"))
            if written and value != default and "${" not in str(default):
                say(f"{path}: {default!r} -> {value!r}")
        return 0
    theirs = flat(effective(load_config(args.other, (), check="none")))
    for path in sorted({*mine, *theirs}):
        a, b = mine.get(path, "(absent)"), theirs.get(path, "(absent)")
        if a != b:
            say(f"{path}: {a!r} -> {b!r}")
    return 0
