"""The guide to serving: its tables are those of the classes, and what it asks a server is asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.served import served

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guides" / "serve.md"
sys.path[:0] = [str(ROOT / "docs"), str(Path(__file__).parent)]
from pages import blocks, commands  # noqa: E402


def test_the_tables_are_those_of_the_classes() -> None:
    from sync_limits import synced

    text = PAGE.read_text(encoding="utf-8")
    assert synced(text) == text, "run: python docs/sync_limits.py"
    assert "| `tokens` | 4096 |" in text
    assert "| `max_batch` | 32 |" in text


def test_every_metric_of_the_guide_exists() -> None:
    import re

    from vlm.inference.batching.stats import Stats
    from vlm.serve.http.models import Models
    from vlm.serve.http.ops import Metrics

    class Counting:
        def stats(self) -> Stats:
            return Stats()

    metrics = Metrics(Models({"stage2": Counting()}))  # type: ignore[dict-item]
    metrics.requests.labels("/v1/chat/completions", "200", "stage2")
    metrics.seconds.labels("/v1/chat/completions")
    known = set(re.findall(r"^(vlm_\w+)", metrics.text().decode(), re.MULTILINE))
    named = set(re.findall(r"\b(vlm_[a-z_]+)", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 8
    assert named <= known, named - known


@pytest.mark.heavy
def test_what_the_guide_asks_is_answered(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (tmp_path / "circle.png").write_bytes(circle())
    with served(tmp_path, models=("stage2=tiny/eval",)) as server:
        asked = [line for line in commands(text) if line.startswith("curl ")]
        assert asked
        if shutil.which("curl"):
            for line in asked:
                line = line.replace("http://127.0.0.1:8000", server.url)
                done = subprocess.run(["bash", "-c", f"{line} -sS"], capture_output=True, text=True, timeout=120)
                assert json.loads(done.stdout)["choices"][0]["message"]["content"], done.stderr
        scripts = [block for block in blocks(text, "python") if "openai" in block]
        assert len(scripts) == 2
        said = []
        for script in scripts:
            script = script.replace("http://127.0.0.1:8000", server.url)
            environment = {**os.environ, "NO_PROXY": "*"}
            command = [sys.executable, "-c", script]
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
            assert done.returncode == 0, done.stderr
            said.append(done.stdout)
    usage = said[1].index("CompletionUsage")
    found = json.loads(said[1][said[1].index("{", usage) :])
    assert found["color"] in ("red", "green", "blue")
    assert found["count"] <= 9


def circle() -> bytes:
    """A PNG of a painted circle."""
    import io

    out = io.BytesIO()
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill="red")
    image.save(out, "PNG")
    return out.getvalue()
