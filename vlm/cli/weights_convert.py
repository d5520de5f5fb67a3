"""``vlm weights convert-llama`` and ``vlm weights merge-lora``: weights of one layout made of others."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm.cli.options import add_listed
from vlm.common.errors import WeightsError
from vlm.common.logging import say
from vlm.common.registry import register_command


@register_command("weights convert-llama")
class ConvertLlama:
    """Original shards of LLaMA, Llama 2 or Llama 3 as a Hugging Face folder.

    example:
      vlm weights convert-llama llama/7B llama-7b
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The two folders, and what the shards do not state."""
        add_listed(parser, "weights convert-llama", "weight files")

    def main(self, args: argparse.Namespace) -> int:
        """Convert, and say what was assumed. Raises WeightsError: files are missing, damaged or not such shards."""
        from vlm.checkpoint.convert.folder import new_folder
        from vlm.checkpoint.convert.llama import LlamaShards
        from vlm.processors.tokenizer.original import convert_tokenizer

        with new_folder(args.target) as work:
            shards = LlamaShards(args.source)
            positions = args.max_positions or shards.positions()
            places = (
                [args.tokenizer]
                if args.tokenizer
                else [d / "tokenizer.model" for d in (args.source, args.source.parent)]
            )
            tokenizer = next((file for file in places if file.is_file()), places[0])
            ids = convert_tokenizer(tokenizer, work, newer=shards.newer, positions=positions)
            files = shards.write(work, ids, positions, int(args.shard_gb * 1e9))
            check_rows(work)
        assumed = "" if args.max_positions else " (by the release; --max-positions sets it)"
        say(f"{args.target}: {len(files)} weight file{'s' if len(files) > 1 else ''}, configuration and tokenizer")
        say(f"context {positions}{assumed}, head {'tied to the token table' if shards.tied else 'of its own'}")
        return 0


@register_command("weights merge-lora")
class MergeLora:
    """Merge LoRA adapters into their LLM, with tokens that they add.

    example:
      vlm weights merge-lora llama-7b chinese-llama-plus-lora-7b chinese-alpaca-plus-lora-7b --to alpaca-zh
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The base, the adapters, and the folder to write."""
        add_listed(parser, "weights merge-lora", "weight files")

    def main(self, args: argparse.Namespace) -> int:
        """Merge, and say where. Raises WeightsError: a file is missing or damaged, or an adapter does not fit."""
        from vlm.checkpoint.convert.folder import new_folder
        from vlm.checkpoint.convert.lora import merge_lora
        from vlm.checkpoint.quantised.rounded import rounded_folder
        from vlm.models.precision import parse_dtype

        dtype = parse_dtype(args.dtype) if args.dtype else None
        with new_folder(args.to) as work:
            base = rounded_folder(args.base.expanduser(), args.quantize) if args.quantize else None
            files = merge_lora(
                args.base, args.loras, work, dtype=dtype, shard_bytes=int(args.shard_gb * 1e9), rounded=base
            )
            rows = check_rows(work)
        count = f"{len(files)} weight file{'s' if len(files) > 1 else ''}"
        say(f"{args.to}: {count} with {rows} tokens, configuration and tokenizer")
        if base is not None:
            say(base.line())
        return 0


def check_rows(folder: Path) -> int:
    """The rows of a folder's token table. Raises WeightsError: its tokenizer has more tokens."""
    from vlm.checkpoint.safe import read_json
    from vlm.processors.tokenizer.tokenizer import Tokenizer

    rows, tokens = int(read_json(folder / "config.json")["vocab_size"]), Tokenizer.from_folder(folder).vocab_size
    if tokens > rows:
        raise WeightsError(
            f"the tokenizer has {tokens} tokens, the model {rows} rows",
            fix="use the tokenizer that belongs to the weights",
        )
    return rows
