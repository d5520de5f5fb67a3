"""A checkpoint format: NumPy's ``.npz``, with the names of the part that it fills."""

from pathlib import Path

import numpy
import torch
from torch import Tensor

from vlm import register_checkpoint_format
from vlm.checkpoint.formats.state_dict import StateDict


@register_checkpoint_format("npz")
class Npz(StateDict):
    """As ``state_dict``, read from an ``.npz``; pickled objects are refused."""

    def read(self, path: Path) -> dict[str, Tensor]:
        """The file's own names and tensors."""
        with numpy.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
