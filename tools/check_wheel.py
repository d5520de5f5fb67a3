"""Builds the wheel and uses it away from the checkout: ``python tools/check_wheel.py`` (``make test-wheel``).

The wheel goes into an empty environment with the versions of ``constraints.txt``; a small quickstart then runs from it
in an empty folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command that must succeed; it sees no variable that would lead it to the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    print("+", *command, flush=True)
    subprocess.run(list(map(str, command)), cwd=cwd, env=environment, check=True)


def main() -> None:
    """Build, install, run."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "empty").mkdir()
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work / "dist", ROOT, cwd=work)
        (wheel,) = (work / "dist").glob("*.whl")
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=work)
        run(work / "venv" / "bin" / "vlm", "quickstart", "--scale", "0.02", cwd=work / "empty")
        if not (work / "empty" / "output" / "quickstart" / "results.json").is_file():
            raise SystemExit("the quickstart left no results.json")


if __name__ == "__main__":
    main()
