"""A Hugging Face folder: config.json and one or many bin or safetensors files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat, below
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.safe import read_folder
from vlm.checkpoint.strict import NamedTensors, wrapped_name
from vlm.common.registry import register_checkpoint_format
from vlm.models.llm.conversion import converted, left_out
from vlm.models.llm.hf import FOLDERS
from vlm.models.lora import is_lora
from vlm.models.vlm import VLM

log = logging.getLogger(__name__)

BIASES = ("bias", "masked_bias")
"""Buffers of causal masks in old files."""
KEYS = KeyMap(
    (("{rest}", "llm.model.{rest}"),),
    ("*.rotary_emb.inv_freq", "*.position_ids", *(f"*.{a}.{b}" for a in ("attn", "attention") for b in BIASES)),
)

OLDER_NAMES = {"embed_out.": "lm_head."}
"""Modules of published files (GPT-NeoX) that transformers has renamed since."""

NEW_ROW_STD = 0.02
"""Standard deviation of new rows, for tokens that the file does not have (``llm.vocab_size``)."""


@register_checkpoint_format("hf_llm")
class HFFolder(CheckpointFormat):
    """Fills ``llm.model``, except LoRA; a head tied to the embeddings may be absent."""

    part, inner = "llm", "model"

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of all shards (mapped from disk), or of a single file."""
        return read_folder(path, FOLDERS)

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`."""
        inner = model.llm.model
        plain = {key.removeprefix(f"{self.prefix}.").replace(".base_layer.", ".") for key in below(model, self.prefix)}
        kept = {key: tensor for key, tensor in tensors.items() if not KEYS.is_ignored(key)}
        warn_of_types(kept, file)
        return self.place(model, *converted(inner, kept, plain, file), file)

    def place(
        self,
        model: VLM,
        named: Mapping[str, Tensor],
        sources: Mapping[str, str],
        file: str,
        makers: Mapping[str, Callable[[], Tensor]] | None = None,
    ) -> NamedTensors:
        """Tensors by the names of transformers' model -> by ours, with the rows that ``llm.vocab_size`` adds.

        Args:
            model: the composition.
            named: tensors, or without numbers (device ``meta``) if ``makers`` are given.
            sources: their names in the file.
            file: name for messages.
            makers: what reads each of them.
        """
        inner, start = model.llm.model, f"{self.prefix}."
        have = set(below(model, self.prefix))
        ours = {key: _resolve(start + key, have, start, f"{start}{inner.base_model_prefix}.") for key in named}
        ours = {key: name for key, name in ours.items() if name in have or not left_out(inner, key)}
        placed = {name: named[key] for key, name in ours.items()}
        theirs = {name: sources[key] for key, name in ours.items()}
        tied = {start + key for key in inner.all_tied_weights_keys or ()}
        required = [key for key in have if not is_lora(key) and key not in tied]
        made = {name: makers[key] for key, name in ours.items()} if makers is not None else {}
        grow_tables(model, placed, made, self.prefix)
        return NamedTensors(file, placed, theirs, [], required, made)

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """See :class:`CheckpointFormat`."""
        rows = [text for key, text in shapes.items() if key.endswith(("embed_tokens.weight", "lm_head.weight"))]
        if not rows:
            return None
        sizes = re.fullmatch(r"file \[(\d+), (\d+)\], model \[(\d+), \2\]", rows[0])
        if sizes:
            return f"the weights have vocabulary {sizes[1]}, config.json says {sizes[3]}: use files of one model"
        return "config.json and the weights are of different models (width differs): use files of one model"


def warn_of_types(tensors: Mapping[str, Tensor], file: str) -> None:
    """Name the types of the matrices of a file in the log, if they differ."""
    found: dict[torch.dtype, str] = {}
    for name, tensor in tensors.items():
        if tensor.dim() > 1 and tensor.is_floating_point():
            found.setdefault(tensor.dtype, name)
    if len(found) > 1:
        listed = ", ".join(f"{name} is {str(dtype).removeprefix('torch.')}" for dtype, name in found.items())
        log.warning("%s: matrices of several types (%s); all become that of model.llm.dtype", file, listed)


def grow_tables(
    model: VLM, placed: dict[str, Tensor], made: dict[str, Callable[[], Tensor]], prefix: str = "llm.model"
) -> None:
    """Add or cut rows of embeddings and head, as ``llm.vocab_size`` says; changes both mappings.

    Args:
        model: the composition.
        placed: our names -> tensors of a file, or what they are (device ``meta``).
        made: our names -> what reads them, if they are read later.
        prefix: where the transformers model is.
    """
    if model.llm.config.vocab_size is None:
        return
    for tensors in (placed, made):
        _untie(model, tensors, prefix)
    for name, table in _tables(model, prefix).items():
        if name in placed:
            placed[name] = _grown(model, placed[name], table)
        if name in made:
            made[name] = partial(_grown_later, model, made[name], table)


def _untie(model: VLM, placed: dict[str, Any], prefix: str) -> None:
    """Give a head with rows of its own (``llm.vocab_size``) those of the embeddings that its file ties it to."""
    embeddings, head = (
        name
        for table in (model.llm.model.get_input_embeddings(), model.llm.model.get_output_embeddings())
        for name, module in model.llm.model.named_modules()
        if module is table
    )
    source, target = f"{prefix}.{embeddings}.weight", f"{prefix}.{head}.weight"
    if model.llm.tied and source in placed:
        placed.setdefault(target, placed[source])


def _tables(model: VLM, prefix: str) -> dict[str, Tensor]:
    """Our names and tensors with one row per token: embeddings, head, and the head's bias."""
    inner = model.llm.model
    tables = [p for m in (inner.get_input_embeddings(), inner.get_output_embeddings()) for p in m.parameters()]
    return {f"{prefix}.{name}": p for name, p in inner.named_parameters() if any(p is t for t in tables)}


def _grown(model: VLM, rows: Tensor, table: Tensor) -> Tensor:
    """:func:`grow`, or cut to a smaller ``llm.vocab_size``; new rows of the head for banned tokens are zero."""
    if len(rows) > len(table):
        count = len(rows) - len(table)
        log.info("the last %d of %d rows of a token table are left out (llm.vocab_size)", count, len(rows))
        return rows[: len(table)]
    grown = grow(rows, table, model.llm.config.new_rows)
    if any(table is p for p in model.llm.model.get_output_embeddings().parameters()) and len(grown) > len(rows):
        grown[[i for i in model.llm.banned_ids if i >= len(rows)]] = 0
    return grown


def _grown_later(model: VLM, make: Callable[[], Tensor], table: Tensor) -> Tensor:
    return _grown(model, make(), table)


def grow(rows: Tensor, table: Tensor, how: str = "random") -> Tensor:
    """``rows [v, d]`` or ``[v]``, extended to the length of ``table`` if widths agree: random, or ``how="mean"``."""
    missing = len(table) - len(rows)
    if missing <= 0 or rows.shape[1:] != table.shape[1:]:
        return rows
    if how == "mean":
        return torch.cat([rows, rows.float().mean(0, keepdim=True).to(rows.dtype).expand(missing, -1)])
    fresh = torch.zeros(missing, *rows.shape[1:], device=rows.device)
    return torch.cat([rows, fresh.normal_(std=NEW_ROW_STD).to(rows.dtype)])


def _resolve(key: str, have: Collection[str], prefix: str, base: str) -> str:
    """Our key: as it is, below the base model when the file holds only that, inside a LoRA layer, or renamed since."""
    rest = key.removeprefix(prefix)
    older = next((new + rest.removeprefix(old) for old, new in OLDER_NAMES.items() if rest.startswith(old)), rest)
    names = [name for plain in (key, base + rest, prefix + older) for name in (plain, wrapped_name(plain))]
    return next((name for name in names if name in have), key)
