"""The contract of weight-file formats, with the behaviour that most of them share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.safe import read_tensors
from vlm.checkpoint.strict import NamedTensors
from vlm.models.lora import is_lora
from vlm.models.vlm import VLM


class CheckpointFormat:
    """A kind of weight file, registered with ``@register_checkpoint_format``; made with the ``into`` of the YAML.

    A typical format sets the class attributes and defines :meth:`key_map`. One whose names follow other rules
    overrides :meth:`rename` as a whole.

    Attributes:
        part: the part that such a file fills completely, unless ``into`` names another.
        inner: path below the part where the file's module is, such as ``model``.
        section: mapping inside the file that holds the tensors, if it has one of that name.
        shape_hint: the likely cause when shapes differ.
        lora_hint: the same when those of LoRA do, if that is another cause.
        holds_trained: whether such a file holds what a run trained, so that the files of a later run replace it.
    """

    part: ClassVar[str] = ""
    inner: ClassVar[str] = ""
    section: ClassVar[str] = "model"
    shape_hint: ClassVar[str | None] = None
    lora_hint: ClassVar[str | None] = None
    holds_trained: ClassVar[bool] = False

    def __init__(self, into: str | None = None) -> None:
        self.into = into
        self.prefix = f"{into or self.part}.{self.inner}".rstrip(".")

    def target(self, model: VLM) -> Any:
        """The module that such a file fills: the part, or what ``into`` names in it; None if there is none."""
        try:
            return attrgetter(self.into or self.part)(model)
        except AttributeError:
            return None

    def covered_parts(self, model_cfg: Any) -> list[str]:
        """Parts (``vision``, ``bridge.0``) whose every matrix such a file fills: they are built uninitialised."""
        return [self.into or self.part] if self.part else []

    def infer_config(self, model_cfg: Any, path: Path) -> Any:
        """``model_cfg``, or a copy with what it leaves open (null) taken from the file: LoRA, sizes of a bridge.

        Raises WeightsError: the file contradicts what the composition states.
        """
        return model_cfg

    def read(self, path: Path) -> dict[str, Tensor]:
        """The file's tensors by its own names."""
        return read_tensors(path, self.section)

    @classmethod
    def recognises(cls, names: Collection[str]) -> bool:
        """Whether a file with these names is of this format; called only if ``holds_trained``."""
        return False

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """Give each tensor our name.

        Args:
            model: the composition.
            tensors: what :meth:`read` gave.
            file: name for messages.
            filled: our keys that earlier files filled.

        Raises:
            WeightsError: the file is of another kind, or the composition lacks what it fills.
        """
        tensors = self.prepare(model, tensors, file)
        theirs, unknown = self.key_map(model, file).rename(tensors)
        placed = {ours: tensors[name] for ours, name in theirs.items()}
        self.fit(model, placed, file)
        return NamedTensors(file, placed, theirs, unknown, self.required(model, placed, filled))

    def prepare(self, model: VLM, tensors: Mapping[str, Tensor], file: str) -> Mapping[str, Tensor]:
        """Check or rewrite the file's tensors before they are renamed."""
        return tensors

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """The file's names and ours, for this composition."""
        raise NotImplementedError(f"{type(self).__name__} defines neither key_map nor rename")

    def fit(self, model: VLM, placed: dict[str, Tensor], file: str) -> None:
        """Bring renamed tensors into the model's shapes, where that loses nothing; changes ``placed``."""

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> Collection[str]:
        """Our keys that this file must hold."""
        return below(model, self.prefix)

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """The likely cause, given ``{our key: "file [...], model [...]"}`` of tensors with wrong shapes."""
        if self.lora_hint and any(is_lora(key) for key in shapes):
            return self.lora_hint
        return self.shape_hint if shapes else None


def below(model: VLM, *prefixes: str) -> list[str]:
    """Our keys (parameters and persistent buffers) below the prefixes, except LoRA's, which no foundation holds."""
    starts = tuple(f"{prefix}." for prefix in prefixes)
    return [key for key in model.state_dict() if key.startswith(starts) and not is_lora(key)]


def bridge_index(model: VLM, cls: type, into: str | None = None) -> int | None:
    """Position of the bridge of class ``cls``; ``into`` (``bridge.1``) decides when it is given."""
    if into is not None and into.startswith("bridge."):
        return int(into.split(".")[1])
    return index_of(model.bridge, cls)


def index_of(parts: Iterable[Any], cls: type) -> int | None:
    """Position of the first of ``parts`` (bridges or inserts) that is of class ``cls``."""
    return next((i for i, part in enumerate(parts) if isinstance(part, cls)), None)


def parts_of(model_cfg: Any, kind: str, config: type = object) -> list[str]:
    """Names (``bridge.0``) of the bridges or inserts of a configuration whose options are of class ``config``."""
    return [f"{kind}.{i}" for i, part in enumerate(getattr(model_cfg, kind)) if isinstance(part.config, config)]
