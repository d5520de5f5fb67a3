"""What a run of this library trained: a run folder, a checkpoint in it, or its ``model.safetensors``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat
from vlm.checkpoint.run_folder import WEIGHTS, find_checkpoint
from vlm.checkpoint.strict import NamedTensors
from vlm.common.errors import WeightsError
from vlm.common.registry import names, register_checkpoint_format, resolve
from vlm.models.lora import is_lora, layer_of
from vlm.models.vlm import VLM

PARTS = ("bridge.", "inserts.", "vision.", "llm.")
"""First names of our own keys."""


class TrainedParts(CheckpointFormat):
    """Base of formats that hold what a run trained. Such a file fills what trains and no earlier file has filled."""

    holds_trained = True

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by their names in the file, or in the newest checkpoint of a run folder."""
        return super().read(find_checkpoint(path) / WEIGHTS if path.is_dir() else path)

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> Collection[str]:
        """What trains, unless it is filled already, or is LoRA of a layer for which the file has none (a new one)."""
        trains = {name for name, p in model.named_parameters() if p.requires_grad} - set(filled)
        held = {layer_of(name) for name in placed if is_lora(name)}
        return {name for name in trains if not is_lora(name) or layer_of(name) in held}

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """Names do not agree, or shapes do not."""
        if shapes:
            return self.shape_hint
        return (
            "use a checkpoint of the same composition (what trains must agree), or declare a part that starts from "
            "random weights: weights: [{format: random, into: bridge.1}, ...]"
        )


@register_checkpoint_format("run_folder")
class RunFolder(TrainedParts):
    """Tensors under our own names."""

    @classmethod
    def recognises(cls, names: Collection[str]) -> bool:
        """Whether the names are ours."""
        return any(name.startswith(PARTS) for name in names)

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`."""
        if not self.recognises(tensors):
            raise not_trained(file, tensors, ["run_folder"])
        return NamedTensors(file, dict(tensors), required=self.required(model, tensors, filled))


@register_checkpoint_format("trained")
class Trained(TrainedParts):
    """A run folder or a published checkpoint of what was trained: the names in the file decide which."""

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """As the registered format that recognises the names does."""
        classes = {name: resolve("checkpoint_format", name) for name in names("checkpoint_format")}
        kinds = {name: c for name, c in classes.items() if c.holds_trained and c is not type(self)}
        kind = next((c for c in kinds.values() if c.recognises(tensors)), None)
        if kind is None:
            raise not_trained(file, tensors, list(kinds))
        self.format: CheckpointFormat = kind(self.into)
        return self.format.rename(model, tensors, file, filled)

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """That of the file's own format."""
        return self.format.hint(shapes)


def not_trained(file: str, tensors: Mapping[str, Tensor], formats: list[str]) -> WeightsError:
    """The error about a file that is of none of ``formats``."""
    kinds, begin = " or ".join(formats), ", ".join(list(tensors)[:3])
    return WeightsError(f"{file}: not a checkpoint of what a run trained ({kinds}); its keys begin with {begin}")
