"""The file of a training state: plain data only, so that it is read back without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vlm.checkpoint.safe import read_file
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
        WeightsError: missing, unreadable or holding code.
    """
    state = read_file(path, mapped=False)
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds {type(state).__name__}, expected the state of a run")
    return state
