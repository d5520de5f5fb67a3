"""``OpenFlamingo-9B/checkpoint.pt``: perceiver, gated cross-attention, and the LLM's complete input embeddings.

Names as in the repository mlfoundations/open_flamingo.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat, below, index_of, parts_of
from vlm.checkpoint.formats.hf_llm import OLDER_NAMES
from vlm.checkpoint.keymap import KeyMap, lora_pairs
from vlm.checkpoint.peft_adapter import PEFT_PREFIX
from vlm.checkpoint.safe import read_file
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.bridges.perceiver import Perceiver
from vlm.models.inserts.gated_xattn import GatedCrossAttention
from vlm.models.vlm import VLM

LM = "lang_encoder."
STATE = "model_state_dict"
SECOND_NAMES = {
    f"{LM}gated_cross_attn_layers.": "gated_cross_attn_layer",
    f"{LM}old_decoder_blocks.": "decoder_layer",
}
"""Lists under which the published wrapper registers modules a second time -> their name below a layer."""


def key_map(model: VLM, file: str) -> KeyMap:
    """Published names of everything that files of this family hold, LoRA included. Raises as :func:`parts`."""
    bridge, insert = parts(model, file)
    path = layer_path(model)
    pairs: list[tuple[str, str]] = []
    for i in range(len(model.llm.layers())):
        layer = f"{LM}{path}.{i}"
        for theirs, ours in (
            (f"{layer}.gated_cross_attn_layer", f"inserts.{insert}.layers.{i}"),
            (f"{layer}.decoder_layer", f"llm.model.{path}.{i}"),
        ):
            rest = f"{theirs}.{{rest}}", f"{ours}.{{rest}}"
            pairs += [*lora_pairs(*rest), rest]
    pairs.append(("perceiver.{rest}", f"bridge.{bridge}.{{rest}}"))
    for older, name in OLDER_NAMES.items():
        if not hasattr(model.llm.model, older.rstrip(".")):
            pairs.append((f"{LM}{older}{{rest}}", f"llm.model.{name}{{rest}}"))
    pairs.append((f"{LM}{{rest}}", "llm.model.{rest}"))
    return KeyMap(tuple(pairs), ("*.rotary_emb.inv_freq", "*.attention.bias", "*.attention.masked_bias"))


def parts(model: VLM, file: str) -> tuple[int, int]:
    """Indices of the perceiver and of the gated cross-attention. Raises WeightsError if one is missing."""
    bridge, insert = index_of(model.bridge, Perceiver), index_of(model.inserts, GatedCrossAttention)
    if bridge is None or insert is None:
        absent = "perceiver in model.bridge" if bridge is None else "gated_xattn in model.inserts"
        raise WeightsError(f"{file}: fills a perceiver and gated_xattn, but the composition has no {absent}")
    return bridge, insert


def layer_path(model: VLM) -> str:
    """Name of the list of decoder layers within the LLM, such as ``model.layers``."""
    layers = model.llm.layers()
    return next(name for name, module in model.llm.model.named_modules() if module is layers)


def read_state(content: Any, file: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint's content, or of ``model_state_dict`` in it. Raises WeightsError if there are none.

    ``module.`` (of distributed training) and peft's part of the names are removed.
    """
    if isinstance(content, dict) and isinstance(content.get(STATE), dict):
        content = content[STATE]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise WeightsError(f"{file}: holds no named tensors, neither at the top nor below {STATE}")
    wrapped = re.compile(rf"^(?:module\.)?({re.escape(LM)}{re.escape(PEFT_PREFIX)})?")
    return {wrapped.sub(lambda match: LM if match[1] else "", name): tensor for name, tensor in tensors.items()}


def without_second_names(tensors: Mapping[str, Tensor], path: str, file: str) -> dict[str, Tensor]:
    """``tensors``, each under its first name. Raises WeightsError if the tensors of two names of one differ.

    ``path`` is the layers' :func:`layer_path`, ``file`` a name for messages.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        first = name
        for stem, module in SECOND_NAMES.items():
            if name.startswith(stem):
                number, _, rest = name.removeprefix(stem).partition(".")
                first = f"{LM}{path}.{number}.{module}.{rest}"
        other = result.get(first, tensors.get(first) if first != name else None)
        if other is not None and not _same(other, tensor):
            raise WeightsError(
                f"{file}: {first} and {name} are two names of one tensor, but their values differ",
                fix="the file is not as the trainer wrote it; get it again from its source",
            )
        result[first] = tensor
    return result


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; free where they share memory."""
    shared = a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
    return a.shape == b.shape and a.dtype == b.dtype and (shared or torch.equal(a, b))


@register_checkpoint_format("openflamingo")
class OpenFlamingo(CheckpointFormat):
    """Fills the perceiver, the gated cross-attention and ``llm``'s input embeddings; goes after the LLM's own files.

    Takes the flat published dict and what trainers save: ``{"model_state_dict": {"module.<name>": ...}}``.
    """

    shape_hint = "sizes of the perceiver, of gated_xattn or of the LLM differ from the file's"

    def covered_parts(self, model_cfg: Any) -> list[str]:
        """Perceiver and gated cross-attention."""
        bridges = parts_of(model_cfg, "bridge", Perceiver.Config)
        return bridges[:1] + parts_of(model_cfg, "inserts", GatedCrossAttention.Config)[:1]

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by published name."""
        return read_state(read_file(path), str(path))

    def prepare(self, model: VLM, tensors: Mapping[str, Tensor], file: str) -> Mapping[str, Tensor]:
        """See :class:`CheckpointFormat`."""
        if not any(name.startswith("perceiver.") for name in tensors):
            raise WeightsError(
                f"{file}: no perceiver.* among its {len(tensors)} tensors (first: {next(iter(tensors))})",
                fix="give the checkpoint.pt of OpenFlamingo-9B; a LoRA file is format mmgpt_lora",
            )
        return without_second_names(tensors, layer_path(model), file)

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        return key_map(model, file)

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> list[str]:
        """Perceiver, cross-attention and the table of input embeddings."""
        bridge, insert = parts(model, "format openflamingo")
        table = model.llm.model.get_input_embeddings().weight
        embeddings = [f"llm.model.{n}" for n, p in model.llm.model.named_parameters() if p is table]
        return below(model, f"bridge.{bridge}", f"inserts.{insert}") + embeddings

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """See :class:`CheckpointFormat`."""
        if any("embed" in key for key in shapes):
            return "set model.llm.vocab_size to the rows of the file's embeddings (the LLM's own and the added tokens)"
        return super().hint(shapes)
