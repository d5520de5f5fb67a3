"""Any file whose names are those of the module it fills, such as timm's own weight files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat, below
from vlm.checkpoint.safe import read_folder, read_tensors
from vlm.checkpoint.strict import NamedTensors
from vlm.common.errors import WeightsError
from vlm.common.registry import register_checkpoint_format
from vlm.models.protocols import FitsFiles
from vlm.models.vlm import VLM

HEADS = ("head.", "head_dist.", "fc_norm.", "attn_pool.", "head_drop.", "classifier.", "fc.")
"""Classification and pooling layers of vision files; left out where the model has no such module."""
INNER = ("", "model.", "vit.")
"""Where a part keeps the module that the file describes."""


@register_checkpoint_format("state_dict")
class StateDict(CheckpointFormat):
    """Fills the part named by ``into`` (``vision``, ``bridge.0``) under the names of a file or folder, strictly."""

    part = "vision"

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by the file's names; a dict under ``model`` or ``state_dict`` is opened."""
        if path.is_dir():
            return read_folder(path)
        tensors = read_tensors(path, "model")
        return tensors if len(tensors) > 1 else read_tensors(path, "state_dict")

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`."""
        have = set(below(model, self.prefix))
        if not have:
            text = f"{file}: the composition has no part {self.prefix!r}"
            raise WeightsError(text, fix="into: vision, bridge.0, ...")
        inner = max(INNER, key=lambda name: sum(f"{self.prefix}.{name}{key}" in have for key in tensors))
        start = f"{self.prefix}.{inner}"
        part = self.target(model)
        left = {f"{self.prefix}.{name}" for name in part.unbuilt} if isinstance(part, FitsFiles) else set()
        known = [key for key in tensors if start + key in have or not (key.startswith(HEADS) or start + key in left)]
        placed = {start + key: tensors[key] for key in known}
        if isinstance(part, FitsFiles):
            inside = part.fitted({name.removeprefix(f"{self.prefix}."): tensor for name, tensor in placed.items()})
            placed = {f"{self.prefix}.{name}": tensor for name, tensor in inside.items()}
        theirs = {start + key: key for key in known}
        return NamedTensors(file, placed, theirs, [], [key for key in have if key.startswith(start)])

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """See :class:`CheckpointFormat`."""
        return f"the sizes of {self.prefix} in the YAML differ from the file's" if shapes else None
