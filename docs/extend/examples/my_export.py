"""An export: what a run trained as one ``.npz``."""

from pathlib import Path

import numpy

from vlm import register_export
from vlm.checkpoint.train_state import trainable_tensors
from vlm.inference.export import ModelExport
from vlm.models.vlm import VLM


@register_export("npz")
class NpzExport(ModelExport):
    """one .npz file with the trained parameters by our names"""

    def save(self, model: VLM, path: Path) -> list[str]:
        """Write the file; the returned names are reported."""
        tensors = trainable_tensors(model)
        with path.open("wb") as file:
            numpy.savez(file, **{name: tensor.float().numpy() for name, tensor in tensors.items()})
        return list(tensors)
