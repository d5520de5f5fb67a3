"""Whole models as transformers saves them: vision encoder, bridge and LLM in one folder.

The names in a file are first made those of the installed transformers, by its own rules: it accepts the spellings of
earlier versions and fuses what published files hold in pieces. A key map of the system then gives our names. Tensors
are read one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlm.checkpoint.formats.base import CheckpointFormat, below, bridge_index
from vlm.checkpoint.formats.hf_llm import grow_tables
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.safe import shards
from vlm.checkpoint.stream import TensorReader
from vlm.checkpoint.strict import NamedTensors
from vlm.common.errors import WeightsError
from vlm.models.llm.conversion import Step, left_out, planned
from vlm.models.published import empty_model, read_model_config
from vlm.models.vlm import VLM

log = logging.getLogger(__name__)

OLD_BUFFERS = KeyMap((), ("*.rotary_emb.inv_freq", "*.position_ids"))
"""Buffers that earlier versions of transformers wrote, and that are computed today."""


class PublishedModel(CheckpointFormat):
    """Base of the formats of whole models; a system defines :meth:`key_map` alone, some also :meth:`divided`.

    The map is between the names of the installed transformers' model and ours. What it declares but this composition
    does not build (later layers of an encoder, an unused norm or head) is left out; everything of ours must be filled.
    """

    def covered_parts(self, model_cfg: Any) -> list[str]:
        """See :class:`CheckpointFormat`: the vision encoder, the bridges and the LLM."""
        vision = [] if model_cfg.vision is None else ["vision"]
        return [*vision, *(f"bridge.{i}" for i in range(len(model_cfg.bridge))), "llm"]

    def read(self, path: Path) -> dict[str, Tensor]:
        """Names, shapes and types (device ``meta``) of the tensors of a folder. Raises WeightsError: as ``shards``."""
        self.folder = path
        self.reader = TensorReader(shards(path))
        return dict(self.reader.facts)

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`; the tensors are read when they are copied."""
        inner = empty_model(read_model_config(self.folder))
        known = set(inner.state_dict())
        names = [name for name in tensors if not OLD_BUFFERS.is_ignored(name)]
        table, have = self.key_map(model, file), {key.replace(".base_layer.", ".") for key in model.state_dict()}
        result = NamedTensors(file, {}, required=self.required(model, (), filled))
        read, unused = partial(self.reader.read, finite=False), 0
        for step in planned(inner, names, known):
            whole = step.make(inner, tensors.__getitem__, file)
            made, is_known = self.divided(whole), known.issuperset(whole)
            value = Made(partial(self._make, step, inner, read, file), len(made))
            for theirs, fact in made.items():
                ours = table.ours(theirs)
                if ours in have:
                    result.tensors[ours], result.theirs[ours] = fact, step.sources[0][0]
                    result.sources[ours] = partial(value.take, theirs)
                elif (ours is not None or table.is_ignored(theirs)) and is_known or left_out(inner, theirs):
                    unused += 1
                    value.skip()
                else:
                    result.unknown.append(step.sources[0][0])
        grow_tables(model, result.tensors, result.sources)
        place = {name: index for index, name in enumerate(self.reader.facts)}  # a file is read from front to back
        result.tensors = dict(
            sorted(result.tensors.items(), key=lambda item: place[result.theirs.get(item[0], names[-1])])
        )
        if unused:
            log.info("%s: %d tensors of layers that this composition does not build", file, unused)
        return result

    def _make(self, step: Step, inner: Any, read: Callable[[str], Tensor], file: str) -> dict[str, Tensor]:
        return self.divided(step.make(inner, read, file))

    def divided(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by transformers' names -> by those of the key map, where one of theirs is several of ours."""
        return tensors

    def joined(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of :meth:`divided`, for all tensors of a model at once."""
        return tensors

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> Collection[str]:
        """All of vision encoder, bridges and LLM, but a head that is tied to the embeddings."""
        tied = {f"llm.model.{name}" for name in model.llm.model.all_tied_weights_keys or ()}
        return [key for key in below(model, "vision", "bridge", "llm") if key not in tied]


class Made:
    """Tensors that are made together, kept until each has been taken."""

    def __init__(self, make: Callable[[], dict[str, Tensor]], count: int) -> None:
        self._make, self._left = make, count
        self._made: dict[str, Tensor] = {}

    def take(self, name: str) -> Tensor:
        """One of them; it is not kept."""
        if name not in self._made:
            self._made = self._make()
        result = self._made.pop(name)
        self.skip()
        return result

    def skip(self) -> None:
        """One fewer is wanted."""
        self._left -= 1
        if not self._left:
            self._made = {}


def bridge_to_fill(model: VLM, kind: type, what: str, name: str, file: str) -> int:
    """Position in the chain of the first bridge of a ``kind``, registered as ``what``, which format ``name`` fills.

    Raises WeightsError: there is none.
    """
    index = bridge_index(model, kind)
    if index is None:
        raise WeightsError(f"{file}: format {name} fills a bridge {what}, the composition has none")
    return index


def llm_pairs(model: VLM, theirs: str, head: str) -> list[tuple[str, str]]:
    """Pairs for a language model that is at ``theirs`` without its head, which is at ``head``."""
    inner = model.llm.model
    own = name_of(inner, inner.get_output_embeddings())
    return [
        (f"{theirs}.{{rest}}", f"llm.model.{inner.base_model_prefix}.{{rest}}"),
        (f"{head}.{{rest}}", f"llm.model.{own}.{{rest}}"),
    ]


def name_of(model: nn.Module, module: nn.Module) -> str:
    """The name of a module within ``model``."""
    return next(name for name, found in model.named_modules() if found is module)
