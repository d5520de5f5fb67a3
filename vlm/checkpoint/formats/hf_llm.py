"""A Hugging Face folder: config.json and one or many bin or safetensors files."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat, below
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.safe import read_folder
from vlm.checkpoint.strict import NamedTensors, wrapped_name
from vlm.common.registry import register_checkpoint_format
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
        have = set(below(model, self.prefix))
        base = f"{self.prefix}.{model.llm.model.base_model_prefix}."
        renamed = KEYS.rename(tensors)[0]
        theirs = {_resolve(ours, have, f"{self.prefix}.", base): name for ours, name in renamed.items()}
        tied = {f"{self.prefix}.{key}" for key in getattr(model.llm.model, "all_tied_weights_keys", {}) or {}}
        required = [key for key in have if not is_lora(key) and key not in tied]
        placed = {ours: tensors[name] for ours, name in theirs.items()}
        if model.llm.config.vocab_size is not None:
            placed |= {k: _grown(model, placed[k], t) for k, t in _tables(model, self.prefix).items() if k in placed}
        return NamedTensors(file, placed, theirs, [], required)

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """See :class:`CheckpointFormat`."""
        rows = [text for key, text in shapes.items() if key.endswith(("embed_tokens.weight", "lm_head.weight"))]
        if not rows:
            return None
        sizes = re.fullmatch(r"file \[(\d+), (\d+)\], model \[(\d+), \2\]", rows[0])
        if sizes:
            return f"the weights have vocabulary {sizes[1]}, config.json says {sizes[3]}: use files of one model"
        return "config.json and the weights are of different models (width differs): use files of one model"


def _tables(model: VLM, prefix: str) -> dict[str, Tensor]:
    """Our names and matrices with one row per token: embeddings and head."""
    inner = model.llm.model
    tables = (inner.get_input_embeddings().weight, inner.get_output_embeddings().weight)
    return {f"{prefix}.{name}": p for name, p in inner.named_parameters() if any(p is t for t in tables)}


def _grown(model: VLM, rows: Tensor, table: Tensor) -> Tensor:
    """:func:`grow`, or cut to a smaller ``llm.vocab_size``; new rows of the head for banned tokens are zero."""
    if len(rows) > len(table):
        count = len(rows) - len(table)
        log.info("the last %d of %d rows of a token table are left out (llm.vocab_size)", count, len(rows))
        return rows[: len(table)]
    grown = grow(rows, table, model.llm.config.new_rows)
    if table is model.llm.model.get_output_embeddings().weight and len(grown) > len(rows):
        grown[[i for i in model.llm.banned_ids if i >= len(rows)]] = 0
    return grown


def grow(rows: Tensor, table: Tensor, how: str = "random") -> Tensor:
    """``rows [v, d]`` with rows appended up to the length of ``table``, if widths agree: random, or ``how="mean"``."""
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
