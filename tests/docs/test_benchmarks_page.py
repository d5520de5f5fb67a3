"""The list of the standard benchmarks says what their YAML files say."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_list_is_that_of_the_yaml_files(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    from sync_benchmarks import PAGE, found, synced

    text = PAGE.read_text(encoding="utf-8")
    assert synced(text) == text, "run: python docs/sync_benchmarks.py"
    assert all(f"`{name}`" in text for _, names in found().values() for name in names)
    sys.modules.pop("sync_benchmarks")
