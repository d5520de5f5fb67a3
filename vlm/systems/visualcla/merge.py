"""Merging a VisualCLA delta into its foundations, in the published layout, a shard at a time.

::

    target/  config.json, tokenizer files, preprocessor_config.json, pytorch_model.bin (resampler and projection)
        text_encoder/    config.json, generation_config.json, pytorch_model*.bin
        vision_encoder/  config.json, pytorch_model.bin
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.formats.clip import BUFFERS, TEXT_TOWER_KEYS, TOWER
from vlm.checkpoint.peft_adapter import PEFT_PREFIX, WEIGHTS, Adapter, read_adapter, read_json
from vlm.checkpoint.safe import shards
from vlm.checkpoint.stream import SHARD_BYTES, TensorInfo, TensorReader, write_shards
from vlm.common.errors import WeightsError
from vlm.common.paths import inner_folder
from vlm.models.llm.hf import FOLDERS as TEXT_FOLDERS
from vlm.models.vision.clip import FOLDERS as VISION_FOLDERS
from vlm.models.vision.clip import read_vision_config
from vlm.systems.visualcla.checkpoint_delta import ADDED, check_base
from vlm.systems.visualcla.checkpoint_keys import EMBEDDINGS, HEAD, PROJECTION, RESAMPLER, TEXT, bridge_names

log = logging.getLogger(__name__)

VISION_PREFIX = "vision_model."
"""Before a name of the vision tower in the whole model."""
KEEP_DTYPE = (".rotary_emb.inv_freq", *BUFFERS)
"""Buffers, which keep their dtype."""
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", ADDED)
PREPROCESSOR = "preprocessor_config.json"
GENERATION = "generation_config.json"
PAD = "<pad>"
"""Added token that the published tokenizer pads with, whatever its file says."""
TORCH_NAMES = {torch.float16: "float16", torch.float32: "float32"}


@dataclass
class Delta:
    """An adapter whose tensors are read one by one."""

    adapter: Adapter
    reader: TensorReader

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor by its name without peft's prefix."""
        return self.reader.read(name if name in self.reader.facts else PEFT_PREFIX + name, dtype)

    def update(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor`` of the whole model with this delta's LoRA added in place, if it has any there.

        The update is formed in float32 and added with one rounding.
        """
        layer = name.removesuffix(".weight")
        if layer not in self.adapter.lora:
            return tensor
        a, b = (self.read(matrix, torch.float32) for matrix in self.adapter.lora[layer])
        return tensor.add_((b @ a).mul_(self.adapter.alpha / self.adapter.rank(layer)))


@dataclass
class Merge:
    """One merge: the readers of both foundations, and the deltas in the order in which they are applied."""

    text: TensorReader
    vision: TensorReader
    deltas: list[Delta]
    dtype: torch.dtype
    shard_bytes: int

    def check(self) -> None:
        """Check that every tensor of the deltas has a place of its shape, and that none is missing.

        Raises:
            WeightsError: it has not.
        """
        have = {TEXT + name: facts.shape for name, facts in self.text.facts.items()}
        have |= {VISION_PREFIX + TOWER + _tower(name): facts.shape for name, facts in self.vision.facts.items()}
        for delta in self.deltas:
            pending = delta.adapter
            file = str(pending.folder)
            for layer, (a, b) in pending.lora.items():
                size: tuple[int, ...] = (pending.tensors[b].shape[0], pending.tensors[a].shape[1])
                _same_shape(file, layer, size, have.get(f"{layer}.weight"))
            for name, tensor in pending.whole().items():
                if not name.startswith((RESAMPLER, PROJECTION)):
                    expected = have.get(name)
                    if expected is not None and name in (EMBEDDINGS, HEAD):  # these grow, together
                        expected = (len(pending.tensors.get(EMBEDDINGS, tensor)), *expected[1:])
                    _same_shape(file, name, tuple(tensor.shape), expected)
            grown, base = pending.tensors.get(EMBEDDINGS), have.get(EMBEDDINGS)
            if HEAD not in pending.tensors and grown is not None and base is not None and len(grown) != base[0]:
                raise WeightsError(
                    f"{file}: {EMBEDDINGS} has {len(grown)} rows, the foundation's {base[0]}, and {HEAD} is missing",
                    fix="is the download complete?",
                )
        self._check_bridge()

    def _check_bridge(self) -> None:
        """Check that the deltas together hold the resampler and the projection that the first one's config states."""
        folders = ", ".join(str(d.adapter.folder) for d in self.deltas)
        result = {n for d in self.deltas for n in d.adapter.whole() if n.startswith((RESAMPLER, PROJECTION))}
        if not result:
            raise WeightsError(f"{folders}: holds neither {RESAMPLER}* nor {PROJECTION}*; no delta of VisualCLA")
        declared = self.deltas[0].adapter.folder / "config.json"
        expected = bridge_names(declared)
        for names, text in ((expected - result, "missing"), (result - expected, f"not stated by {declared}")):
            if names:
                some = ", ".join(sorted(names)[:4])
                raise WeightsError(f"{folders}: {text}: {some} ({len(names)} in all)", fix="is the download complete?")

    def write(self, target: Path) -> list[Path]:
        """Write the weights of all three parts below ``target``; gives the files."""
        files = self._part(target / "text_encoder", self.text, {name: TEXT + name for name in self.text.facts})
        tower = {TOWER + _tower(name): name for name in self.vision.facts}
        files += self._part(target / "vision_encoder", self.vision, {n: VISION_PREFIX + n for n in tower}, tower)
        return files + self._bridge(target)

    def _part(
        self, folder: Path, reader: TensorReader, whole: dict[str, str], theirs: dict[str, str] | None = None
    ) -> list[Path]:
        """A foundation: name to write -> name in the whole model, and -> name in the file where that differs."""

        def make(name: str) -> Tensor:
            source = theirs[name] if theirs else name
            dtype = self._dtype(name, reader.facts[source])
            last = max((i for i, d in enumerate(self.deltas) if whole[name] in d.adapter.tensors), default=None)
            tensor = reader.read(source, dtype) if last is None else self.deltas[last].read(whole[name], dtype)
            for delta in self.deltas[0 if last is None else last + 1 :]:
                tensor = delta.update(whole[name], tensor)
            return tensor

        sizes = {name: self._bytes(name, whole[name], reader.facts[theirs[name] if theirs else name]) for name in whole}
        written = write_shards(folder, sizes, make, self.shard_bytes)
        self._release(reader)
        return written

    def _bridge(self, target: Path) -> list[Path]:
        source: dict[str, Delta] = {}
        for delta in self.deltas:
            source |= {name: delta for name in delta.adapter.whole() if name.startswith((RESAMPLER, PROJECTION))}
        sizes = {name: delta.adapter.tensors[name].numel() * self.dtype.itemsize for name, delta in source.items()}
        written = write_shards(target, sizes, lambda name: source[name].read(name, self.dtype), self.shard_bytes)
        self._release(self.text)
        return written

    def _dtype(self, name: str, facts: TensorInfo) -> torch.dtype:
        return facts.dtype if name.endswith(KEEP_DTYPE) or not facts.dtype.is_floating_point else self.dtype

    def _bytes(self, name: str, whole: str, facts: TensorInfo) -> int:
        pending = [d.adapter.tensors[whole].numel() for d in self.deltas if whole in d.adapter.tensors]
        return (pending[-1] if pending else facts.numel) * self._dtype(name, facts).itemsize

    def _release(self, reader: TensorReader) -> None:
        reader.release()
        for delta in self.deltas:
            delta.reader.release()


def merge_visualcla(
    text_model: str | Path,
    vision_model: str | Path,
    lora_models: Sequence[str | Path],
    target: str | Path,
    *,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write the merged model. The folder appears by rename when all is written.

    Args:
        text_model: Hugging Face folder of the base LLM.
        vision_model: folder of a CLIP or of its vision tower.
        lora_models: deltas, applied in this order; tokenizer and config.json are the first one's.
        target: new folder.
        dtype: of the result, buffers excepted; foundations are rounded to it before the update is added.
        shard_bytes: largest weight file; the peak of memory is about this much.

    Returns:
        The weight files written.

    Raises:
        WeightsError: a folder or file is missing or damaged, does not fit, or ``target`` holds files.
    """
    text, vision = inner_folder(text_model, TEXT_FOLDERS), inner_folder(vision_model, VISION_FOLDERS)
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WeightsError(f"{target}: already holds files", fix="give a new folder")
    deltas = []
    for folder in map(Path, lora_models):
        adapter = read_adapter(folder)
        file = next(folder / name for name in WEIGHTS if (folder / name).is_file())
        deltas.append(Delta(adapter, TensorReader([file])))
    if not (deltas[0].adapter.folder / TOKENIZER[0]).is_file():
        raise WeightsError(f"{deltas[0].adapter.folder}: no {TOKENIZER[0]}", fix="is the download complete?")
    configs = _configs(text, vision, deltas[0].adapter)
    merge = Merge(TensorReader(shards(text)), _tower_reader(vision), deltas, dtype, shard_bytes)
    rows = _rows(merge, text)
    merge.check()
    work = target.with_name(f".{target.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    try:
        written = merge.write(work)
        _write_configs(work, configs, rows, dtype)
        _copy_texts(work, text, vision, deltas[0].adapter.folder)
        if target.exists():
            target.rmdir()
        work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [target / file.relative_to(work) for file in written]


def _tower_reader(folder: Path) -> TensorReader:
    """A reader of the vision tower alone."""
    reader = TensorReader(shards(folder))
    whole = any(name.startswith(TOWER) for name in reader.facts)
    reader.facts = {
        name: facts
        for name, facts in reader.facts.items()
        if not name.startswith(TEXT_TOWER_KEYS) and (name.startswith(TOWER) or not whole)
    }
    return reader


def _rows(merge: Merge, text: Path) -> int | None:
    """The vocabulary of the result; every delta's base is checked."""
    table = "model.embed_tokens.weight"
    rows: int | None = merge.text.facts[table].shape[0] if table in merge.text.facts else None
    for delta in merge.deltas:
        pending = delta.adapter.tensors.get(TEXT + table)
        if pending is not None and rows is not None:
            if delta is merge.deltas[0]:
                check_base(text, delta.adapter, len(pending))
            elif len(pending) < rows:
                raise WeightsError(f"{delta.adapter.folder}: has {len(pending)} tokens, the model before it {rows}")
            rows = len(pending)
    return rows


def _configs(text: Path, vision: Path, adapter: Adapter) -> dict[str, dict[str, Any]]:
    return {
        "": read_json(adapter.folder / "config.json"),
        "text_encoder": read_json(text / "config.json"),
        "vision_encoder": read_vision_config(vision),
    }


def _write_configs(target: Path, configs: dict[str, dict[str, Any]], rows: int | None, dtype: torch.dtype) -> None:
    top, text, vision = (dict(configs[name]) for name in ("", "text_encoder", "vision_encoder"))
    text |= {"torch_dtype": TORCH_NAMES[dtype]} | ({} if rows is None else {"vocab_size": rows})
    vision |= {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "torch_dtype": TORCH_NAMES[dtype],
    }
    top["text_config"] = (top.get("text_config") or {}) | text
    top["vision_config"] = (top.get("vision_config") or {}) | vision
    top |= {} if rows is None else {"vocab_size": rows}
    for name, content in (("", top), ("text_encoder", text), ("vision_encoder", vision)):
        file = target / name / "config.json"
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_texts(target: Path, text: Path, vision: Path, delta: Path) -> None:
    """Tokenizer of the delta, image recipe of the vision folder, generation options of the base or else its ids."""
    declared = text / GENERATION
    if declared.is_file():
        shutil.copyfile(declared, target / "text_encoder" / GENERATION)
    else:  # as transformers writes it for a model without one
        config = read_json(text / "config.json")
        ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config}
        options = json.dumps({"_from_model_config": True, **ids}, indent=2)
        (target / "text_encoder" / GENERATION).write_text(options + "\n", encoding="utf-8")
    recipe = next((f / PREPROCESSOR for f in (vision, vision.parent, delta) if (f / PREPROCESSOR).is_file()), None)
    if recipe is not None:
        shutil.copyfile(recipe, target / PREPROCESSOR)
    for name in TOKENIZER:
        if (delta / name).is_file():
            shutil.copyfile(delta / name, target / name)
    special, added = target / "special_tokens_map.json", target / ADDED
    if special.is_file() and added.is_file() and PAD in read_json(added):
        content = read_json(special) | {"pad_token": PAD}
        special.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tower(name: str) -> str:
    return name.removeprefix(TOWER)


def _same_shape(file: str, name: str, shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> None:
    if wanted is None:
        raise WeightsError(
            f"{file}: {name} is in neither foundation", fix="the adapter is of another model: use its own foundations"
        )
    if tuple(shape) != tuple(wanted):
        raise WeightsError(
            f"{file}: {name} is for a matrix {list(shape)}, the foundation's is {list(wanted)}",
            fix="the adapter is of another model: use its own foundations",
        )
