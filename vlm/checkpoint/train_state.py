"""What a run needs, next to the weights, to resume exactly: random states, and the trainable parameters by name.

Everything is made of tensors, numbers, strings, lists, tuples and dicts, so that the file can be read with
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vlm.checkpoint.run_files import WEIGHTS
from vlm.checkpoint.safe import read_file
from vlm.checkpoint.shards.pieces import is_sharded
from vlm.checkpoint.shards.reader import PiecesReader
from vlm.checkpoint.strict import NamedTensors, copy_strictly, fit_strictly, is_finite, not_finite
from vlm.common import dist
from vlm.common.processes.shards import own, whole
from vlm.models.vlm import VLM

OTHER = "resume with the configuration of the run folder, or start over in another run.output_dir"


def capture_rng(device: torch.device) -> dict[str, Any]:
    """States of python's, numpy's, torch's and the device's generators."""
    version, words, gauss = random.getstate()
    generator, keys, position, has_gauss, numpy_gauss = np.random.get_state()
    return {
        "python": (version, list(words), gauss),
        "numpy": {
            "generator": generator,
            "key": torch.from_numpy(np.asarray(keys, np.int64)),
            "pos": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(numpy_gauss),
        },
        "torch": torch.get_rng_state(),
        "device": dist.device_rng_state(device),
    }


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Restore what :func:`capture_rng` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    drawn = state["numpy"]
    keys = drawn["key"].numpy().astype(np.uint32)
    np.random.set_state((drawn["generator"], keys, drawn["pos"], drawn["has_gauss"], drawn["gauss"]))
    torch.set_rng_state(state["torch"])
    dist.set_device_rng_state(state["device"], device)


def trainable_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a run must store: the trainable parameters, and frozen ones that no file holds, since they are random.

    By name; detached, contiguous, on the CPU. With parameters that are split, all processes must call it.
    """
    return {n: whole(p).detach().cpu().contiguous().clone() for n, p in stored_parameters(model)}


def stored_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of :func:`trainable_tensors`."""
    kept = _random_names(model)
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad or n in kept]


def _random_names(model: nn.Module) -> frozenset[str]:
    return model.random if isinstance(model, VLM) else frozenset()


def load_trainable_tensors(model: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Copy ``tensors`` into the trainable parameters; names and shapes must agree exactly.

    Frozen ones that started at random are restored if the file has them.

    Raises WeightsError: names the missing, unexpected or differently shaped tensors.
    """
    copy_strictly(model, _placed(model, tensors, source), lambda shapes: OTHER)


def load_trainable(model: nn.Module, folder: Path) -> None:
    """:func:`load_trainable_tensors` from a checkpoint; of a split parameter each process reads its own part.

    Raises WeightsError: as there, or the file is missing or damaged.
    """
    if not is_sharded(model):
        load_trainable_tensors(model, read_file(folder / WEIGHTS), str(folder))
        return
    reader = PiecesReader([folder / WEIGHTS])
    placement = fit_strictly(model, _placed(model, reader.facts, str(folder)), lambda shapes: OTHER)
    have = dict(model.named_parameters())
    reader.read_into({n: have[n].detach() for n in placement.tensors}, str(folder))
    for name in placement.tensors:
        part = own(have[name])
        if not is_finite(part):
            raise not_finite(str(folder), name, part, part.dtype)


def _placed(model: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> NamedTensors:
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    stored = trained | _random_names(model)
    known, unknown = {n: t for n, t in tensors.items() if n in stored}, [n for n in tensors if n not in stored]
    return NamedTensors(source, known, unknown=unknown, required=trained)
