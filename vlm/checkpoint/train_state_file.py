"""The file of a training state: plain data only, so that it is read back without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from vlm.common.errors import WeightsError


def check_plain(value: Any, where: str = "state") -> None:
    """Refuse anything that ``torch.load(weights_only=True)`` would not read back.

    Raises:
        TypeError: names the place of the first foreign object.
    """
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor):
        return
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_plain(item, f"{where}[{i}]")
        return
    if isinstance(value, dict):
        for key, item in value.items():
            check_plain(key, f"key of {where}")
            check_plain(item, f"{where}.{key}")
        return
    raise TypeError(f"{where} is a {type(value).__name__}; train state holds only tensors and plain python values")


def read_state(path: Path) -> dict[str, Any]:
    """Read ``trainer.pt`` without running code from it.

    Raises:
        WeightsError: missing or unreadable.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file", fix="resume from a checkpoint folder written by training")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: cannot be read as a train state ({reason})") from None
