"""A command: how many parameters a composition trains."""

import argparse

from vlm import load_config, register_command
from vlm.common.logging import say


@register_command("count")
class Count:
    """how many parameters a composition has and trains"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The YAML file, a run folder, or a name such as lynx/finetune."""
        parser.add_argument("cfg", metavar="FILE|RUN_DIR|NAME")

    def main(self, args: argparse.Namespace) -> int:
        """Build on the meta device, where nothing is allocated, and count."""
        from vlm.models.build import build_model

        model = build_model(load_config(args.cfg).model, device="meta")
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {trained:,} trained")
        return 0
