"""Adding published delta weights (Vicuna) to their base language model, shard by shard.

The sum is that of ``apply_delta`` in FastChat.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.safe import copy_files, read_json, read_tensors, shards, write_json
from vlm.checkpoint.stream import TensorReader, write_index
from vlm.common.errors import WeightsError
from vlm.common.logging import say
from vlm.common.registry import register_command

log = logging.getLogger(__name__)

GROWING = ("model.embed_tokens.weight", "lm_head.weight")
"""Matrices with one row more in a v0 delta than in the base, whose missing row counts as zeros."""
SKIPPED = ".rotary_emb.inv_freq"
"""Buffers that old files carry; they are recomputed from the configuration."""
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
CONFIGS = ("config.json", "generation_config.json")


@register_command("weights apply-delta")
class ApplyDelta:
    """Add a published delta (Vicuna v0, v1.1) to its base LLM.

    example:
      vlm weights apply-delta --base llama-7b --delta vicuna-7b-delta-v0 --target vicuna-7b
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Three folders; the longer spellings are those of FastChat's script."""
        folder: dict[str, Any] = {"required": True, "type": Path}
        parser.add_argument("--base", "--base-model-path", **folder, help="Hugging Face folder of LLaMA")
        parser.add_argument("--delta", "--delta-path", **folder, help="folder of the delta")
        parser.add_argument("--target", "--target-model-path", **folder, help="new folder")

    def main(self, args: argparse.Namespace) -> int:
        """Add, and say where."""
        files = apply_delta(args.base, args.delta, args.target)
        say(f"{args.target}: {len(files)} weight file{'s' if len(files) > 1 else ''}, config and tokenizer")
        return 0


def apply_delta(base: str | Path, delta: str | Path, target: str | Path) -> list[Path]:
    """Write ``target = base + delta`` as a Hugging Face folder with safetensors; returns the weight files.

    The sum is formed in half precision, as in the published script, so that the result is bit-identical. One shard
    of the delta and one of the base are open at a time; torch files are mapped, not read. Config and tokenizer are the
    delta's (a v0 delta has one row more than its tokenizer has pieces: that is normal).

    Raises:
        WeightsError: a folder without weights, other names or shapes, a target that exists, or no tokenizer.
    """
    from safetensors.torch import save_file

    base, delta, target = Path(base), Path(delta), Path(target)
    if target.exists() and any(target.iterdir()):
        raise WeightsError(f"{target}: already holds files", fix="give an empty folder as target")
    reader = TensorReader(shards(base))
    files = shards(delta)
    missing = {name for name in reader.facts if not name.endswith(SKIPPED)}
    target.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    size = 0
    for number, file in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {key: tensor for key, tensor in read_tensors(file).items() if not key.endswith(SKIPPED)}
        for key in tensors.keys() - reader.facts.keys():
            raise WeightsError(f"{file}: {key} is not in the base model {base}", fix="use the base of this delta")
        summed = {key: _add(key, reader.read(key, torch.float16), tensor, delta) for key, tensor in tensors.items()}
        part = target / f"{name}.part"
        save_file(summed, part, metadata={"format": "pt"})
        part.replace(target / name)
        missing -= summed.keys()
        where |= dict.fromkeys(summed, name)
        size += sum(t.nbytes for t in summed.values())
        log.info("%s: %d tensors", target / name, len(summed))
    if missing:
        raise WeightsError(f"{delta}: has no {', '.join(sorted(missing)[:5])}", fix="is the download complete?")
    if len(files) > 1:
        write_index(target / "model.safetensors.index.json", size, where)
    _copy_texts(base, delta, target)
    return [target / name for name in dict.fromkeys(where.values())]


def _add(key: str, base: Tensor, delta: Tensor, folder: Path) -> Tensor:
    rows = delta.shape[0] - base.shape[0] if delta.dim() else 0
    if key in GROWING and rows > 0 and base.shape[1:] == delta.shape[1:]:
        base = torch.cat([base, base.new_zeros(rows, *base.shape[1:])])
    if base.shape != delta.shape:
        raise WeightsError(
            f"{folder}: {key} is {list(delta.shape)}, in the base model {list(base.shape)}",
            fix="a delta fits one base only: the same family and size, converted to the Hugging Face layout",
        )
    return (base + delta.to(torch.float16)).contiguous()


def _copy_texts(base: Path, delta: Path, target: Path) -> None:
    """Config and tokenizer of the delta, or the base's where the delta has no complete tokenizer."""
    copy_files(CONFIGS, delta, target)
    source = next((f for f in (delta, base) if (f / TOKENIZER[0]).is_file()), None)
    if source is None:
        raise WeightsError(f"neither {delta} nor {base} has {TOKENIZER[0]}", fix="copy the tokenizer next to the delta")
    copy_files(TOKENIZER, source, target)
    for name in TOKENIZER[1:]:
        _repair_special_tokens(target / name)


def _repair_special_tokens(file: Path) -> None:
    """Early converters wrote empty strings for ``<s>``, ``</s>``, ``<unk>``, which makes the begin token id 0."""
    content = read_json(file) if file.is_file() else {}
    usual = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if fixed := {k: v for k, v in usual.items() if content.get(k, "") in ("", None)}:
        log.warning("%s: filled in %s", file, ", ".join(f"{k}={v}" for k, v in fixed.items()))
        write_json(file, content | fixed)
