"""Merging a VisualCLA delta into its foundations, in the published layout, a shard at a time.

The result equals that of the merge script of the repository airaria/Visual-Chinese-LLaMA-Alpaca.

::

    target/  config.json, tokenizer files, preprocessor_config.json, pytorch_model.bin (resampler and projection)
        text_encoder/    config.json, generation_config.json, pytorch_model*.bin
        vision_encoder/  config.json, pytorch_model.bin
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm.checkpoint.convert.folder import new_folder
from vlm.checkpoint.convert.lora import GENERATION, Delta, MergedTensors
from vlm.checkpoint.formats.clip import BUFFERS, TEXT_TOWER_KEYS, TOWER
from vlm.checkpoint.peft_adapter import Adapter
from vlm.checkpoint.safe import copy_files, read_json, shards, write_json
from vlm.checkpoint.stream import SHARD_BYTES, TensorReader, write_shards
from vlm.common.errors import WeightsError
from vlm.common.logging import say
from vlm.common.paths import inner_folder
from vlm.common.registry import register_command
from vlm.models.llm.hf import FOLDERS as TEXT_FOLDERS
from vlm.models.precision import parse_dtype
from vlm.models.vision.clip import FOLDERS as VISION_FOLDERS
from vlm.models.vision.clip import read_vision_config
from vlm.systems.visualcla.checkpoint import (
    ADDED,
    BRIDGE,
    EMBEDDINGS,
    HEAD,
    PREPROCESSOR,
    TEXT,
    TOKENIZER,
    bridge_names,
    check_base,
)

VISION_PREFIX = "vision_model."
"""Added to a name of the vision tower in the whole model."""
KEEP_DTYPE = (".rotary_emb.inv_freq", *BUFFERS)
"""Ends of the names of buffers, which keep their dtype."""
PAD = "<pad>"
"""Added token that the published tokenizer pads with, whatever its own file states."""


@dataclass
class Foundation:
    """One of the two models below a delta, and the folder of the result that it becomes."""

    folder: str
    prefix: str  # of its names in the whole model, before the names of the result
    reader: TensorReader
    names: dict[str, str]  # name in the result -> name in the foundation's files

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes by name in the whole model."""
        return {self.prefix + name: self.reader.facts[source].shape for name, source in self.names.items()}


def read_foundations(text: Path, vision: Path) -> list[Foundation]:
    """The base LLM; and the vision tower, of a whole CLIP or alone."""
    llm, clip = TensorReader(shards(text)), TensorReader(shards(vision))
    whole = any(name.startswith(TOWER) for name in clip.facts)
    names = [n for n in clip.facts if n.startswith(TOWER) or not (whole or n.startswith(TEXT_TOWER_KEYS))]
    tower = {TOWER + name.removeprefix(TOWER): name for name in names}
    return [
        Foundation("text_encoder", TEXT, llm, {name: name for name in llm.facts}),
        Foundation("vision_encoder", VISION_PREFIX, clip, tower),
    ]


@dataclass
class Merge:
    """The foundations, and the deltas in the order in which they are applied."""

    foundations: list[Foundation]
    deltas: list[Delta]
    dtype: torch.dtype
    shard_bytes: int

    def check(self) -> None:
        """Raises WeightsError if a tensor of a delta has no place in the model, has another shape, or is missing."""
        have = {name: shape for foundation in self.foundations for name, shape in foundation.shapes().items()}
        for delta in self.deltas:
            _check_adapter(delta.adapter, have)
        folders = ", ".join(str(d.adapter.folder) for d in self.deltas)
        names = set(self._bridge())
        if not names:
            raise WeightsError(f"{folders}: holds neither {'* nor '.join(BRIDGE)}*; not a delta of VisualCLA")
        declared = self.deltas[0].adapter.folder / "config.json"
        expected = bridge_names(declared)
        for odd, text in ((expected - names, "missing"), (names - expected, f"not stated by {declared}")):
            if odd:
                some = ", ".join(sorted(odd)[:4])
                raise WeightsError(f"{folders}: {text}: {some} ({len(odd)} in all)", fix="is the download complete?")

    def write(self, target: Path) -> list[Path]:
        """Write the weights of all three parts below ``target``; returns the files."""
        files = [file for foundation in self.foundations for file in self._write_foundation(foundation, target)]
        source = self._bridge()
        facts = {name: delta.adapter.tensors[name].to("meta", self.dtype) for name, delta in source.items()}
        return files + write_shards(target, facts, lambda name: source[name].read(name, self.dtype), self.shard_bytes)

    def _write_foundation(self, foundation: Foundation, target: Path) -> list[Path]:
        merged = MergedTensors(
            foundation.reader, foundation.names, self.deltas, self.dtype, foundation.prefix, KEEP_DTYPE
        )
        written = write_shards(target / foundation.folder, merged.facts, merged.make, self.shard_bytes)
        merged.release()
        return written

    def _bridge(self) -> dict[str, Delta]:
        """Names of resampler and projection -> the last delta that has them."""
        return {n: d for d in self.deltas for n in d.adapter.whole() if n.startswith(BRIDGE)}


def _check_adapter(adapter: Adapter, have: Mapping[str, torch.Size]) -> None:
    """Raises WeightsError if a delta has a tensor that the foundations lack, or one of another shape."""
    file, tensors = str(adapter.folder), adapter.tensors
    for layer, (a, b) in adapter.lora.items():
        _same_shape(file, layer, (tensors[b].shape[0], tensors[a].shape[1]), have.get(f"{layer}.weight"))
    for name, tensor in adapter.whole().items():
        if not name.startswith(BRIDGE):
            expected = have.get(name)
            if expected is not None and name in (EMBEDDINGS, HEAD):  # these grow, together
                expected = torch.Size((len(tensors.get(EMBEDDINGS, tensor)), *expected[1:]))
            _same_shape(file, name, tuple(tensor.shape), expected)
    grown, base = tensors.get(EMBEDDINGS), have.get(EMBEDDINGS)
    if HEAD not in tensors and grown is not None and base is not None and len(grown) != base[0]:
        text = f"{EMBEDDINGS} has {len(grown)} rows, the foundation's {base[0]}, and {HEAD} is missing"
        raise WeightsError(f"{file}: {text}", fix="is the download complete?")


@register_command("weights merge")
class MergeCommand:
    """Merge LLM, CLIP and VisualCLA delta into a folder of the published layout.

    example:
      vlm weights merge --text-model llm --vision-model clip --lora-model delta --output-dir merged
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The flags of the published script, also with hyphens."""
        folder: dict[str, Any] = {"required": True, "type": Path}
        parser.add_argument("--text-model", "--text_model", **folder, help="Hugging Face folder of the LLM")
        parser.add_argument("--vision-model", "--vision_model", **folder, help="folder of CLIP ViT-L/14")
        parser.add_argument("--lora-model", "--lora_model", required=True, help="folder of the delta, or a,b,c")
        parser.add_argument("--output-dir", "--output_dir", default=Path("merged_model"), type=Path, help="new folder")
        parser.add_argument("--dtype", choices=["fp16", "fp32"], default="fp16", help="of the result (published: fp16)")
        parser.add_argument("--shard-gb", type=float, default=4.0, help="largest weight file, about the memory used")

    def main(self, args: argparse.Namespace) -> int:
        """Merge, and say where."""
        folders = [name.strip() for name in args.lora_model.split(",")]
        options: dict[str, Any] = {"dtype": parse_dtype(args.dtype), "shard_bytes": int(args.shard_gb * 1e9)}
        files = merge_visualcla(args.text_model, args.vision_model, folders, args.output_dir, **options)
        say(f"{args.output_dir}: {len(files)} weight files, configurations, tokenizer and image recipe")
        return 0


def merge_visualcla(
    text_model: str | Path,
    vision_model: str | Path,
    lora_models: Sequence[str | Path],
    target: str | Path,
    *,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write the merged model, and return its weight files. The folder appears by rename when all is written.

    Args:
        text_model: Hugging Face folder of the base LLM.
        vision_model: folder of a CLIP or of its vision tower.
        lora_models: deltas, applied in this order; tokenizer and config.json are the first one's.
        target: new folder.
        dtype: of the result, buffers excepted; foundations are rounded to it before the update is added.
        shard_bytes: largest weight file; the peak of memory is about this much.

    Raises:
        WeightsError: a folder or file is missing or damaged, does not fit, or ``target`` holds files.
    """
    text, vision = inner_folder(text_model, TEXT_FOLDERS), inner_folder(vision_model, VISION_FOLDERS)
    target = Path(target)
    first = Path(lora_models[0])
    deltas = [Delta(Path(folder)) for folder in lora_models]
    if not (first / TOKENIZER[0]).is_file():
        raise WeightsError(f"{first}: no {TOKENIZER[0]}", fix="is the download complete?")
    configs = [read_json(first / "config.json"), read_json(text / "config.json"), read_vision_config(vision)]
    merge = Merge(read_foundations(text, vision), deltas, dtype, shard_bytes)
    rows = _rows(merge, text)
    merge.check()
    with new_folder(target) as work:
        written = merge.write(work)
        _write_configs(work, configs, rows, dtype)
        _copy_texts(work, text, vision, first)
    return [target / file.relative_to(work) for file in written]


def _rows(merge: Merge, text: Path) -> int | None:
    """The vocabulary of the result, if it is known; each delta must have been made for that of the model before it."""
    shape = merge.foundations[0].shapes().get(EMBEDDINGS)
    if shape is None:
        return None
    rows = shape[0]
    for number, adapter in enumerate(delta.adapter for delta in merge.deltas):
        if EMBEDDINGS in adapter.tensors:
            before, rows = rows, len(adapter.tensors[EMBEDDINGS])
            if number == 0:
                check_base(text, adapter, rows)
            elif rows < before:
                raise WeightsError(f"{adapter.folder}: has {rows} tokens, the model before it {before}")
    return rows


def _write_configs(target: Path, configs: Sequence[dict[str, Any]], rows: int | None, dtype: torch.dtype) -> None:
    top, text, vision = configs
    vocabulary = {} if rows is None else {"vocab_size": rows}
    stored = {"torch_dtype": str(dtype).removeprefix("torch.")}
    kind = {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model"}
    parts = {"text": text | stored | vocabulary, "vision": vision | stored | kind}
    inner = {f"{name}_config": (top.get(f"{name}_config") or {}) | config for name, config in parts.items()}
    write_json(target / "config.json", top | inner | vocabulary)
    for name, config in parts.items():
        write_json(target / f"{name}_encoder" / "config.json", config)


def _copy_texts(target: Path, text: Path, vision: Path, delta: Path) -> None:
    """Tokenizer of the delta, image recipe of the vision folder, generation options (or special ids) of the base."""
    copy_files([GENERATION], text, target / "text_encoder")
    if not (text / GENERATION).is_file():  # as transformers writes it for a model without one
        config = read_json(text / "config.json")
        ids = {name: config[name] for name in ["bos_token_id", "eos_token_id", "pad_token_id"] if name in config}
        write_json(target / "text_encoder" / GENERATION, {"_from_model_config": True, **ids})
    recipe = next((f for f in (vision, vision.parent, delta) if (f / PREPROCESSOR).is_file()), delta)
    copy_files([PREPROCESSOR], recipe, target)
    copy_files(TOKENIZER, delta, target)
    special, added = target / "special_tokens_map.json", target / ADDED
    if special.is_file() and added.is_file() and PAD in read_json(added):
        write_json(special, read_json(special) | {"pad_token": PAD})


def _same_shape(file: str, name: str, shape: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    if shape != expected:
        differs = "" if expected is None else f"is for a matrix {list(shape)}, the foundation's is {list(expected)}"
        fix = "the adapter is of another model: use its own foundations"
        raise WeightsError(f"{file}: {name} {differs or 'is in neither foundation'}", fix=fix)
