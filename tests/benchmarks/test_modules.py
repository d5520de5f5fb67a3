"""The measurements follow the library's names; what they measure is not tested."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(f.stem for f in FOLDER.glob("*.py") if f.stem != "__init__"))
def test_it_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    importlib.import_module(f"benchmarks.{name}")
