"""Reading tensors into whatever part of them this process holds, through ``torch.distributed.checkpoint``.

Its own reader of folders unpickles their metadata; this one takes it from the safetensors files that it is given.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from vlm.checkpoint.header import header
from vlm.checkpoint.shards.pieces import OFFSET, OFFSETS
from vlm.common.errors import WeightsError

AGAIN = "copy the checkpoint again, or resume from another one"


class PiecesReader(dcp.StorageReader):
    """Reads named tensors of safetensors files, whole ones or parts as :mod:`vlm.checkpoint.shards.pieces` writes them.

    Attributes:
        facts: name -> shape and dtype (a tensor on the device ``meta``) of the whole tensors.

    Raises:
        WeightsError: a file is missing or damaged.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.facts: dict[str, Tensor] = {}
        self._chunks: dict[str, list[ChunkStorageMetadata]] = {}
        self._files: dict[tuple[str, tuple[int, ...]], Path] = {}
        for file in files:
            self._add(file)

    def _add(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        if not file.is_file():  # a FIFO would be waited for
            raise WeightsError(f"{file}: missing, or not a regular file", fix=AGAIN)
        try:
            found = header(file)
            with safe_open(file, "pt") as stored:
                where = json.loads((stored.metadata() or {}).get(OFFSETS, "{}"))
            if not isinstance(where, dict):
                raise ValueError("its list of parts is none")
            for key, fact in found.items():
                offsets = tuple(int(n) for n in where[key][OFFSET]) if key in where else (0,) * fact.dim()
                shape = tuple(int(n) for n in where[key]["shape"]) if key in where else tuple(fact.shape)
                if len(offsets) != fact.dim() or any(o < 0 or o + n > s for o, n, s in zip(offsets, fact.shape, shape)):
                    raise ValueError(f"{key} is outside of its tensor")
                self.facts[key] = torch.empty(shape, dtype=fact.dtype, device="meta")
                self._chunks.setdefault(key, []).append(ChunkStorageMetadata(torch.Size(offsets), fact.shape))
                self._files[key, offsets] = file
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            OverflowError,
            RuntimeError,
        ) as error:
            raise WeightsError(f"{file}: not a part of a checkpoint ({error})", fix=AGAIN) from error

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between two readings."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The tensors and where their parts are."""
        made: dict[str, Any] = {
            key: TensorStorageMetadata(TensorProperties(dtype=fact.dtype), fact.shape, self._chunks[key])
            for key, fact in self.facts.items()
        }
        return Metadata(state_dict_metadata=made)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Everything is known already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what ``plan`` asks for, one file after the other."""
        from safetensors import safe_open

        def file_of(index: MetadataIndex) -> Path:
            return self._files[index.fqn, tuple(index.offset or ())]

        for file in sorted({file_of(item.storage_index) for item in plan.items}):
            with safe_open(file, "pt") as stored:
                for item in plan.items:
                    if file_of(item.storage_index) != file:
                        continue
                    places = tuple(slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths))
                    name = item.storage_index.fqn
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(stored.get_slice(name)[places] if places else stored.get_tensor(name))
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """No other reader is chosen by a path."""
        return False

    def check(self, key: str, shape: Sequence[int], what: str) -> None:
        """Raises WeightsError: a tensor that is there has another shape, or its parts are not just the whole of it."""
        fact, stored = self.facts[key], sum(chunk.sizes.numel() for chunk in self._chunks[key])
        if tuple(fact.shape) != tuple(shape) or stored != fact.numel():
            found = f"{list(fact.shape)} with {stored:,} numbers"
            raise WeightsError(f"{what}: {key} is {found}, expected {list(shape)} with {math.prod(shape):,}", fix=AGAIN)
        end = 0
        for chunk in sorted(self._chunks[key], key=lambda chunk: tuple(chunk.offsets)) if fact.dim() else ():
            if chunk.offsets[0] != end or any(chunk.offsets[1:]):
                raise WeightsError(f"{what}: {key} has parts that overlap or are not whole rows", fix=AGAIN)
            end += chunk.sizes[0]

    def read_into(self, targets: Mapping[str, Tensor], what: str) -> None:
        """Copy stored numbers into ``targets``, of split ones into the part that this process holds.

        Each process reads on its own: nothing is exchanged.

        Args:
            targets: name -> tensor of the stored shape.
            what: name of the checkpoint, for messages.

        Raises:
            WeightsError: a tensor is not there, has another shape, or lacks a part.
        """
        missing = [key for key in targets if key not in self.facts]
        if missing:
            raise WeightsError(f"{what} lacks {len(missing)} tensors, first {missing[0]}", fix=AGAIN)
        for key, target in targets.items():
            self.check(key, target.shape, what)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is")
            dcp.load(dict(targets), storage_reader=self, no_dist=True)
