"""``vlm import``: a YAML composition of a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.cli.options import add_listed
from vlm.common.errors import WeightsError
from vlm.common.logging import busy, quiet, say
from vlm.common.owned import write_own
from vlm.common.registry import register_command


@register_command("import")
class Import:
    """Write the YAML composition of a Hugging Face folder.

    Chat and evaluation need no such file (vlm chat DIR); training and other parts do. No code in the folder is run.

    example:
      vlm import /models/my-vlm --to mine.yaml
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The folder and the file."""
        add_listed(parser, "import")

    def main(self, args: argparse.Namespace) -> int:
        """Write it, and say what to do next.

        Raises UserError: an unsupported, incomplete or unusable folder, or a file of somebody else.
        """
        from vlm.checkpoint.fits import misfits
        from vlm.config.api import load_config
        from vlm.inference.architectures.source import model_section, model_type_of
        from vlm.inference.architectures.write import as_text, is_composition
        from vlm.processors.processor import build_processor

        folder: Path = args.folder.resolve()
        section = model_section(folder)
        with busy(f"checking {folder}"), quiet("vlm.checkpoint"):
            cfg = load_config({"model": section})
            build_processor(cfg.model)  # a chat template that fails is found now, not when it is first used
            if problems := misfits(cfg):
                raise WeightsError(problems[0].message)
        target = Path(args.to or f"{folder.name}.yaml")
        kind = model_type_of(folder) or ""
        write_own(target, as_text(section, folder, kind, str(target)), is_composition)
        say(f"{target}: {kind} of {folder}")
        say("next:")
        say(f"  vlm chat {target} --image cat.jpg")
        say(f"  vlm verify {folder} --against transformers")
        say(f"  vlm train {target}    # after you have named your data in it")
        return 0
