"""Importing and exporting hold at most 1.2 times the largest shard; importing, beyond the model itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.import_memory import make_folder

ROOT = Path(__file__).parents[2]
SHARD_MB = 100


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "experts", "more"),
    [
        ("import_memory", 0, ()),
        ("import_memory", 4, ()),
        ("export_memory", 0, ("--shard-mb", str(SHARD_MB))),
        ("export_memory", 0, ("--shard-mb", str(SHARD_MB), "--form", "composed")),
    ],
)
def test_growth_is_within_the_largest_shard(name: str, experts: int, more: tuple[str, ...], tmp_path: Path) -> None:
    make_folder(tmp_path / "small", 32, 2, 300, experts, SHARD_MB * 10**6)
    make_folder(tmp_path / "large", 1024, 4, 8000, experts, SHARD_MB * 10**6)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--child", str(tmp_path), *more]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["ratio"] <= 1.2, found
