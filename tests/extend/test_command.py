"""A package outside the tree adds a command: by ``--plugins``, and by an entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COMMAND = '''
from vlm.common.errors import UserError
from vlm.common.logging import say
from vlm.common.registry import register_command


@register_command("hello")
class Hello:
    """Greet somebody.

    example:
      vlm hello Ada
    """

    def add_arguments(self, parser):
        parser.add_argument("name")

    def main(self, args):
        if args.name == "nobody":
            raise UserError("there is nobody to greet", fix="name somebody")
        say(f"Hello {args.name}!")
        return 0
'''


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "__init__.py").touch()
    (tmp_path / "acme" / "greet.py").write_text(COMMAND)
    return tmp_path


def vlm(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{site}:{ROOT}"}
    command = [sys.executable, "-m", "vlm.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=site)


@pytest.mark.parametrize("how", ["--plugins", "entry point"])
def test_a_command_of_a_plugin(site: Path, how: str) -> None:
    before = ("--plugins", "acme.greet") if how == "--plugins" else ()
    if how == "entry point":
        info = site / "acme-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[vlm.plugins]\nacme = acme.greet\n")
    assert "  hello       Greet somebody." in vlm(site, *before, "--help").stdout
    assert vlm(site, *before, "hello", "Ada").stdout == "Hello Ada!\n"
    page = vlm(site, *before, "hello", "--help").stdout
    assert "Greet somebody." in page and "vlm hello Ada" in page
    fault = vlm(site, *before, "hello", "nobody")
    assert (fault.returncode, fault.stderr) == (2, "error: there is nobody to greet\n  fix: name somebody\n")


def test_unknown_commands_and_plugins(site: Path) -> None:
    assert "invalid choice: 'hello'" in vlm(site, "hello", "Ada").stderr
    fault = vlm(site, "--plugins", "acme.absent", "hello", "Ada")
    assert fault.returncode == 2 and fault.stderr.startswith("error: plugin 'acme.absent': no such module")
