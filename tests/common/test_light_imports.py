"""Importing the package, and asking for help, loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch torchvision transformers timm peft numpy PIL omegaconf iopath gradio webdataset sentencepiece tokenizers cv2"
    " decord"
)


@pytest.mark.parametrize(
    "code",
    [
        "import vlm",
        "import vlm.common.registry, vlm.config.schema, vlm.common.errors, vlm.common.types, vlm.common.paths",
        "import vlm.config.api, vlm.common.logging",
        "import vlm.common.registry as r; [r.names(k) for k in r.FOLDERS]",
        "import vlm.cli",
        "import vlm.cli\ntry: vlm.cli.main(['--help'])\nexcept SystemExit: pass",
        "import vlm.cli\ntry: vlm.cli.main(['train', '--help'])\nexcept SystemExit: pass",
        "import vlm.cli; vlm.cli.main(['list'])",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    check = f"import sys\n{code}\nheavy = sorted(set('{HEAVY}'.split()) & set(sys.modules))\nassert not heavy, heavy\n"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_bare_import_is_next_to_nothing() -> None:
    check = "import sys; before = set(sys.modules); import vlm; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 3
