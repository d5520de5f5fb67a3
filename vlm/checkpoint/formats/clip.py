"""Files of CLIP.

``clip``: as Hugging Face saves it, the whole model or its vision tower, a folder or a single file. ``openai_clip``:
under its authors' names, ``ViT-L-14.pt`` (a TorchScript archive) and the files of open_clip.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat, below
from vlm.checkpoint.formats.eva import resize_positions
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.restricted_unpickler import named_tensors, read_without_code
from vlm.checkpoint.safe import read_folder, read_tensors
from vlm.checkpoint.strict import NamedTensors
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.vision.clip import FOLDERS, Clip
from vlm.models.vlm import VLM

TOWER = "vision_model."
TEXT_TOWER_KEYS = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
BUFFERS = (".position_ids",)
BLOCK = "visual.transformer.resblocks.{i}"
TEXT = ("transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*", "text_projection", "logit_*")
SIZES = ("input_resolution", "context_length", "vocab_size")
"""Numbers that the archive stores next to the weights."""
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.")


def tower_names(names: Collection[str], vision: Clip) -> tuple[dict[str, str], list[str]]:
    """Names within ``vision.model`` -> names in the file, and the names that nobody declared.

    Left out: the text half, buffers, and what this tower does not have (later blocks, an unused final norm).
    """
    prefix, depth = TOWER if any(name.startswith(TOWER) for name in names) else "", len(vision.blocks())
    result: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        inner = name.removeprefix(prefix)
        block = _BLOCK.match(inner)
        if name.endswith(BUFFERS) or name.startswith(TEXT_TOWER_KEYS) or (block and int(block[1]) >= depth):
            continue
        if inner.startswith("post_layernorm.") and not vision.config.post_layernorm:
            continue
        if name.startswith(prefix):
            result[inner] = name
        else:
            unknown.append(name)
    return result, unknown


def fit_positions(placed: dict[str, Tensor], prefix: str, vision: Clip) -> None:
    """Fit the position table among ``placed`` (our names) to the image size of ``vision``."""
    table = f"{prefix}.embeddings.position_embedding.weight"
    if table in placed and placed[table].dim() == 2:
        count = len(vision.model.embeddings.position_embedding.weight)
        placed[table] = resize_positions(placed[table][None], count)[0]


@register_checkpoint_format("clip")
class ClipFolder(CheckpointFormat):
    """Fills ``vision.model``; fits the position table to the image size."""

    part, inner = "vision", "model"
    shape_hint = "config.json and the weights are of different encoders: use files of one model"

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of all files by published name."""
        return read_folder(path, FOLDERS)

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`."""
        if not isinstance(self.target(model), Clip):
            raise WeightsError(
                f"{file}: format clip fills a CLIP tower, but {self.into or self.part} is another encoder"
            )
        names, unknown = tower_names(tensors, self.target(model))
        theirs = {f"{self.prefix}.{inner}": name for inner, name in names.items()}
        placed = {ours: tensors[name] for ours, name in theirs.items()}
        fit_positions(placed, self.prefix, self.target(model))
        return NamedTensors(file, placed, theirs, unknown, below(model, self.prefix))


def key_map(depth: int, post_layernorm: bool, prefix: str = "vision.model") -> KeyMap:
    """The map for a tower of the file's first ``depth`` blocks; the packed projections have been split."""
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn"] = "self_attn"
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
        stem, packed, kind = name.rpartition(".attn.in_proj_")
        if packed:
            result |= {f"{stem}.attn.{p}_proj.{kind}": t for p, t in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            result[name] = tensor
    return result


@register_checkpoint_format("openai_clip")
class OpenAIClip(CheckpointFormat):
    """Fills ``vision.model`` of a ``clip``; the text half is left out. No code of a TorchScript archive is run."""

    part, inner = "vision", "model"
    shape_hint = "the encoder's sizes under model.vision differ from the file's"

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by published name, of a TorchScript archive, a torch file or a safetensors file."""
        script = is_torchscript(path)
        tensors = named_tensors(read_without_code(path)) if script else read_tensors(path, "state_dict")
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}

    def prepare(self, model: VLM, tensors: Mapping[str, Tensor], file: str) -> Mapping[str, Tensor]:
        """See :class:`CheckpointFormat`."""
        if not isinstance(self.target(model), Clip):
            raise WeightsError(
                f"{file}: format openai_clip fills a CLIP tower, but {self.into or self.part} is another encoder"
            )
        return split_projections(tensors)

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        vision = self.target(model)
        return key_map(len(vision.blocks()), vision.config.post_layernorm, self.prefix)

    def fit(self, model: VLM, placed: dict[str, Tensor], file: str) -> None:
        """Resample the position table."""
        fit_positions(placed, self.prefix, self.target(model))


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (a zip with code inside)."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
