"""What every weight-file format offers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from vlm.checkpoint.strict import NamedTensors
from vlm.models.lora import is_lora
from vlm.models.vlm import VLM


class CheckpointFormat(Protocol):
    """A kind of file, registered with ``@register_checkpoint_format``; constructed with the ``into`` of the YAML."""

    def __init__(self, into: str | None = None) -> None: ...

    def covered_prefixes(self, model: VLM) -> list[str]:
        """Key prefixes that such a file fills completely, given a model built on the meta device or for real."""
        ...

    def read(self, path: Path) -> dict[str, Tensor]:
        """The file's own names and tensors."""
        ...

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """Give each tensor our name. ``filled`` are our keys that earlier files filled."""
        ...

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """The likely cause of wrong shapes, or None."""
        ...


@runtime_checkable
class InfersConfig(Protocol):
    """A format whose files also say something about the composition (the rank of LoRA, sizes of a bridge)."""

    def infer_config(self, model_cfg: Any, path: Path) -> Any:
        """``model_cfg`` with what it leaves open (null) taken from the file.

        Raises:
            WeightsError: the file contradicts what the composition states.
        """
        ...


def below(model: VLM, prefix: str) -> list[str]:
    """Our keys (parameters and persistent buffers) below ``prefix``, except LoRA's, which no foundation holds."""
    return [key for key in model.state_dict() if key.startswith(f"{prefix}.") and not is_lora(key)]


def bridge_index(model: VLM, cls: type, into: str | None) -> int | None:
    """Position in the chain of the bridge of class ``cls``; ``into`` (``bridge.1``) decides when it is given."""
    if into is not None and into.startswith("bridge."):
        return int(into.split(".")[1])
    return next((i for i, part in enumerate(model.bridge) if isinstance(part, cls)), None)
