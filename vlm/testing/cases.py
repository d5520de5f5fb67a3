"""Cases recorded from other code, as tests compare with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor


class RecordedCase:
    """One folder: ``config.json`` (sizes, files), ``case.json`` (texts and numbers), ``tensors.safetensors``.

    Example::

        case = RecordedCase(Path("tests/golden/mine/open"))
        assert torch.equal(model(case.tensor("pixels")), case.tensor("tokens"))
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = self.json("config.json")
        self.case: dict[str, Any] = self.json("case.json")

    def json(self, name: str) -> Any:
        """The content of a JSON file of the folder."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def has(self, name: str) -> bool:
        """Whether a tensor was recorded."""
        with safe_open(self.folder / "tensors.safetensors", "pt") as file:
            return name in file.keys()  # noqa: SIM118

    def tensor(self, name: str) -> Tensor:
        """A recorded tensor, in its recorded shape and dtype."""
        with safe_open(self.folder / "tensors.safetensors", "pt") as file:
            return file.get_tensor(name)
