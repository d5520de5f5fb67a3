"""LoRA adapters of peft added to the model that they were trained on, a tensor at a time.

The numbers are those of peft's ``merge_and_unload``: the update is formed in float32 and added with one rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.peft_adapter import PEFT_PREFIX, read_adapter
from vlm.checkpoint.quantised.rounded import RoundedBase
from vlm.checkpoint.safe import copy_files, read_json, shards, write_json
from vlm.checkpoint.stream import SHARD_BYTES, TensorReader, write_shards
from vlm.common.errors import WeightsError

TOKENIZER = (
    *("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
"""Files of a tokenizer; a folder with one of the first three has one."""
GENERATION = "generation_config.json"


class Delta:
    """An adapter whose tensors are read one by one. Raises WeightsError, see :func:`read_adapter`."""

    def __init__(self, folder: Path) -> None:
        self.adapter = read_adapter(folder)
        self.reader = TensorReader([self.adapter.file])

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
class MergedTensors:
    """The tensors of a model with deltas applied in order, for :func:`.stream.write_shards`.

    Attributes:
        reader: the model.
        names: name in the result -> name in the model's files.
        deltas: the adapters.
        dtype: of the result; None: that of each tensor of the model.
        prefix: what the adapters' names have before those of the result.
        keep: ends of the names of buffers, which keep their dtype.
        rounded: what matrices of the model go through before an update is added; None: nothing.
    """

    reader: TensorReader
    names: Mapping[str, str]
    deltas: Sequence[Delta]
    dtype: torch.dtype | None = None
    prefix: str = ""
    keep: tuple[str, ...] = (".rotary_emb.inv_freq",)
    rounded: RoundedBase | None = None

    @cached_property
    def replaced(self) -> dict[str, int]:
        """Name -> the last delta that holds the tensor in full; -1: none."""
        last = dict.fromkeys(self.names, -1)
        for number, delta in enumerate(self.deltas):
            last |= {name: number for name in self.names if self.prefix + name in delta.adapter.tensors}
        return last

    @property
    def facts(self) -> dict[str, Tensor]:
        """Name -> shape and dtype of the result."""
        result = {}
        for name, source in self.names.items():
            last = self.replaced[name]
            own = self.reader.facts[source]
            found = own if last < 0 else self.deltas[last].adapter.tensors[self.prefix + name]
            result[name] = found.to("meta", self._dtype(name))
        return result

    def make(self, name: str) -> Tensor:
        """The tensor as the last delta that replaces it has it, with the updates of those that follow."""
        start, dtype = self.replaced[name], self._dtype(name)
        if start >= 0:
            tensor = self.deltas[start].read(self.prefix + name, dtype)
        else:
            tensor = self._base(name, dtype)
        for delta in self.deltas[start + 1 :]:
            tensor = delta.update(self.prefix + name, tensor)
        return tensor

    def _base(self, name: str, dtype: torch.dtype) -> Tensor:
        if self.rounded is None or name not in self.rounded.names:
            return self.reader.read(self.names[name], dtype)
        return self.rounded.through(name, self.reader.read(self.names[name])).to(dtype)

    def _dtype(self, name: str) -> torch.dtype:
        own = self.reader.facts[self.names[name]]
        keep = name.endswith(self.keep) or not own.is_floating_point()
        return own.dtype if keep or self.dtype is None else self.dtype

    def release(self) -> None:
        """Close all files."""
        for reader in (self.reader, *(delta.reader for delta in self.deltas)):
            reader.release()


def merge_lora(
    base: str | Path,
    loras: Sequence[str | Path],
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    rounded: RoundedBase | None = None,
) -> list[Path]:
    """Write an LLM with adapters merged into it as a Hugging Face folder; returns the weight files.

    Adapters may hold token tables in full (``modules_to_save``), with more rows than the model before them. The
    tokenizer is that of the last adapter that has one.

    Args:
        base: Hugging Face folder of the LLM.
        loras: adapter folders, in the order in which they were trained.
        target: folder to write into.
        dtype: of the result; None: as in ``base``.
        shard_bytes: largest weight file.
        rounded: see :class:`MergedTensors`.

    Raises:
        WeightsError: a file is missing or damaged, or an adapter does not fit the model before it.
    """
    base = Path(base).expanduser()
    config = read_json(base / "config.json")
    reader = TensorReader(shards(base))
    deltas = [Delta(Path(folder).expanduser()) for folder in loras]
    merged = MergedTensors(reader, {name: name for name in reader.facts}, deltas, dtype, rounded=rounded)
    rows = _check_deltas(merged, config, base)
    files = write_shards(target, merged.facts, merged.make, shard_bytes, safetensors=True)
    merged.release()
    stored = {} if dtype is None else {"torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(target / "config.json", config | {"vocab_size": rows} | stored)
    copy_files([GENERATION], base, target)
    folders = [*(delta.adapter.folder for delta in reversed(deltas)), base]
    source = next((f for f in folders if any((f / name).is_file() for name in TOKENIZER[:3])), None)
    if source is None:
        raise WeightsError(f"{folders[-1]}: no tokenizer in it, nor beside an adapter", fix="copy its files there")
    copy_files(TOKENIZER, source, target)
    return files


def _check_deltas(merged: MergedTensors, config: Mapping[str, object], base: Path) -> int:
    """The rows of the result's token tables. Raises WeightsError: an adapter does not fit the model before it."""
    have = {name: tuple(fact.shape) for name, fact in merged.reader.facts.items()}
    rows = config.get("vocab_size")
    if not isinstance(rows, int) or (rows not in {shape[0] for shape in have.values() if shape}):
        raise WeightsError(f"{base / 'config.json'}: vocab_size is {rows!r}, which no tensor has as its rows")
    tables = [name for name, shape in have.items() if len(shape) == 2 and shape[0] == rows]
    for delta in merged.deltas:
        file, tensors = delta.adapter.folder, delta.adapter.tensors
        for layer, (a, b) in delta.adapter.lora.items():
            _same(file, layer, (tensors[b].shape[0], tensors[a].shape[1]), have.get(f"{layer}.weight"))
        for name, tensor in delta.adapter.whole().items():
            shape, known = tuple(tensor.shape), have.get(name)
            if name in tables and known is not None and shape[0] >= known[0]:
                known = (shape[0], *known[1:])
            _same(file, name, shape, known)
            have[name] = shape
        counts = {name: have[name][0] for name in tables}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise WeightsError(f"{file}: the token tables differ in rows: {listed}", fix="is the download complete?")
    return have[tables[0]][0]


def _same(folder: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    if shape != expected:
        differs = "has none of that name" if expected is None else f"has {list(expected)}"
        raise WeightsError(
            f"{folder}: {name} is for a matrix {list(shape)}, while the model before this adapter {differs}",
            fix="use the base model of this adapter, and adapters in the order in which they were trained",
        )
