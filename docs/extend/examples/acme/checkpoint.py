"""Published files of Acme-VLM: ``acme.safetensors`` with ``projector.*``; read, and written by an export."""

from pathlib import Path

from safetensors.torch import save_file

from acme.parts import Projector
from vlm import register_checkpoint_format, register_export
from vlm.checkpoint.formats.base import CheckpointFormat, bridge_index
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.train_state import trainable_tensors
from vlm.common.errors import WeightsError
from vlm.inference.export import ModelExport
from vlm.models.vlm import VLM


def names(model: VLM, file: str) -> KeyMap:
    """Their names and ours. Raises WeightsError: the composition has no such projector."""
    index = bridge_index(model, Projector)
    if index is None:
        raise WeightsError(f"{file}: the composition has no acme_projector")
    return KeyMap((("projector.{rest}", f"bridge.{index}.{{rest}}"),))


@register_checkpoint_format("acme")
class AcmeFile(CheckpointFormat):
    """Fills the projector."""

    part = "bridge.0"

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See the base class."""
        return names(model, file)


@register_export("acme")
class AcmeExport(ModelExport):
    """one .safetensors file of Acme-VLM"""

    def save(self, model: VLM, path: Path) -> list[str]:
        """Write the trained projector under the published names."""
        table = names(model, str(path))
        tensors = {table.theirs(name) or name: tensor for name, tensor in trainable_tensors(model).items()}
        save_file(tensors, path)
        return list(tensors)
