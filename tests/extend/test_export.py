"""A package outside the tree adds an export, a source and an action of ``vlm weights``, each in one file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from vlm.checkpoint.run_folder import RunDir
from vlm.checkpoint.safe import read_tensors
from vlm.config.api import load_config
from vlm.inference.engine import Engine

from ..inference.small import write_config

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = '''
import torch

from vlm.common.logging import say
from vlm.common.registry import register_command, register_export, register_source
from vlm.config.api import load_config
from vlm.inference.export import ModelExport


@register_export("flat")
class Flat(ModelExport):
    """one .pt file with our own names"""

    def save(self, model, path):
        state = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        torch.save(state, path)
        return list(state)


@register_source("pointer")
class Pointer:
    """A text file with the path of a composition."""

    def recognises(self, path):
        return path.suffix == ".pointer"

    def config(self, path, options=()):
        return load_config(path.read_text().strip(), options)


@register_command("weights count")
class Count:
    """how many tensors a file has"""

    def add_arguments(self, parser):
        parser.add_argument("file")

    def main(self, args):
        from vlm.checkpoint.safe import read_tensors

        say(str(len(read_tensors(args.file))))
        return 0
'''


def vlm(folder: Path, *arguments: str) -> str:
    """Output of a command where the plugin is installed."""
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'site'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vlm.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.heavy
def test_export_source_and_action_of_an_installed_package(tmp_path: Path) -> None:
    info = tmp_path / "site" / "acme-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "acme_layouts.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vlm.plugins]\nacme = acme_layouts\n")

    config = write_config(tmp_path)
    trained = {n: p.detach().clone() for n, p in Engine.load(config).model.named_parameters() if p.requires_grad}
    run = RunDir(tmp_path / "run")
    run.prepare()
    run.save(1, trained, {}, {}, yaml.safe_dump(load_config(config).resolved))

    assert "one .pt file with our own names" in vlm(tmp_path, "weights", "export", "--help")
    file = tmp_path / "flat.pt"
    assert str(file) in vlm(tmp_path, "weights", "export", str(run.path), "--format", "flat", "--to", str(file))
    written = read_tensors(file)
    assert written.keys() == trained.keys() and all(torch.equal(written[n], t) for n, t in trained.items())
    assert "how many tensors a file has" in vlm(tmp_path, "weights", "--help")
    assert vlm(tmp_path, "weights", "count", str(file)) == f"{len(trained)}\n"

    pointer = tmp_path / "mine.pointer"
    pointer.write_text(str(config))
    answer = vlm(tmp_path, "chat", str(pointer), "--device", "cpu", "--ask", "Hi", "--greedy", "--max-new-tokens", "2")
    assert answer == vlm(
        tmp_path, "chat", str(config), "--device", "cpu", "--ask", "Hi", "--greedy", "--max-new-tokens", "2"
    )
