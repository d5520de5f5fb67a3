"""CLIP under its authors' names: ``ViT-L-14.pt`` (a TorchScript archive) and the files of open_clip."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat
from vlm.checkpoint.formats.clip import fit_positions
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.restricted_unpickler import named_tensors, read_without_code
from vlm.checkpoint.safe import read_tensors
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.vision.clip import Clip
from vlm.models.vlm import VLM

BLOCK = "visual.transformer.resblocks.{i}"
TEXT = ("transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*", "text_projection", "logit_*")
SIZES = ("input_resolution", "context_length", "vocab_size")
"""Numbers that the archive stores next to the weights."""
PACKED = (".attn.in_proj_weight", ".attn.in_proj_bias")
"""Queries, keys and values in one matrix."""


def key_map(depth: int, post_layernorm: bool, prefix: str = "vision.model") -> KeyMap:
    """The map for a tower of the file's first ``depth`` blocks; the packed projections have been split."""
    names = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.q_proj": "self_attn.q_proj",
        "attn.k_proj": "self_attn.k_proj",
        "attn.v_proj": "self_attn.v_proj",
        "attn.out_proj": "self_attn.out_proj",
    }
    pairs = [
        ("visual.class_embedding", f"{prefix}.embeddings.class_embedding"),
        ("visual.positional_embedding", f"{prefix}.embeddings.position_embedding.weight"),
        ("visual.conv1.weight", f"{prefix}.embeddings.patch_embedding.weight"),
        ("visual.ln_pre.{rest}", f"{prefix}.pre_layrnorm.{{rest}}"),
    ]
    ignored = [*TEXT, *SIZES, "visual.proj"]
    if post_layernorm:
        pairs.append(("visual.ln_post.{rest}", f"{prefix}.post_layernorm.{{rest}}"))
    else:
        ignored.append("visual.ln_post.*")
    for i in range(depth):
        block, ours = BLOCK.format(i=i), f"{prefix}.encoder.layers.{i}"
        pairs += [(f"{block}.{theirs}.{{rest}}", f"{ours}.{name}.{{rest}}") for theirs, name in names.items()]
    ignored += [f"{BLOCK.format(i=i)}.*" for i in range(depth, depth + 48)]
    return KeyMap(tuple(pairs), tuple(ignored))


def split_projections(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``attn.in_proj_*  [3 d, ...]`` as ``attn.{q,k,v}_proj.*  [d, ...]``; everything else as it is."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.endswith(PACKED):
            result[name] = tensor
            continue
        stem, _, kind = name.rpartition(".in_proj_")
        result |= {f"{stem}.{p}_proj.{kind}": t for p, t in zip("qkv", tensor.chunk(3), strict=True)}
    return result


@register_checkpoint_format("openai_clip")
class OpenAIClip(CheckpointFormat):
    """Fills ``vision.model`` of a ``clip``; the text half is left out. No code of a TorchScript archive is run."""

    part, inner = "vision", "model"
    shape_hint = "the encoder's sizes under model.vision differ from the file's"

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by published name, of a TorchScript archive, a torch file or a safetensors file."""
        if is_torchscript(path):
            tensors = named_tensors(read_without_code(path))
        else:
            tensors = read_tensors(path, "state_dict")
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}

    def prepare(self, model: VLM, tensors: Mapping[str, Tensor], file: str) -> Mapping[str, Tensor]:
        """See :class:`CheckpointFormat`."""
        if not isinstance(model.vision, Clip):
            raise WeightsError(f"{file}: format openai_clip fills a CLIP tower, but model.vision is another encoder")
        return split_projections(tensors)

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        return key_map(len(model.vision.blocks()), model.vision.config.post_layernorm, self.prefix)

    def fit(self, model: VLM, placed: dict[str, Tensor], file: str) -> None:
        """Resample the position table."""
        fit_positions(placed, self.prefix, model.vision)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (a zip with code inside)."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
