"""The pages of vlm replay in a real browser: contrast, labels, width, hostile text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from vlm.pages.replay import spikes_page, step_page
from vlm.runners.replay.record import Token

from .conftest import CHROMIUM
from .test_chat_page import axe_faults
from .test_eval_pages import opened

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"), pytest.mark.heavy]

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="
HOSTILE = "<img src=x onerror=document.title=1>" * 8


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("replay")
    tokens = [Token("[image 1: 4 tokens]", medium=True), Token("▁What"), Token(HOSTILE)]
    tokens += [Token(f"▁{loss}", True, loss=loss) for loss in (0.01, 0.2, 0.7, 1.5, 3.0, 9.0)] + [Token("⏎", True)]
    sample: dict[str, Any] = {
        "place": "process 0, micro-batch 1", "name": HOSTILE, "dataset": "mine", "record": "record 1 of pass 1",
        "media": ["image " + "long/" * 40 + "x.png"], "loss": 2.5, "share": 0.9, "targets": 7, "tokens": tokens,
        "images": [("images", [PIXEL])],
    }  # fmt: skip
    facts = {
        "state": "stopped", "status": "differs from the log", "sub": "output/" + "mine" * 40, "parts": {"llm": 2.0},
        "tiles": [("loss", "1.5")], "notes": ["other versions"], "numbers": [("loss", "1.25", "1.5", "0.25")],
    }  # fmt: skip
    (folder / "step.html").write_text(step_page("Step 3", facts, [sample, {**sample, "name": "", "images": []}]))
    curve = [(n, 2.0 + n % 3) for n in range(60)]
    rows = [("3", "9", "1", "12 *", "loss", "2", "2 steps", HOSTILE)]
    head = ("step", "loss", "grad norm", "deviations", "of", "median", "replay trains", "samples")
    shown = {"steps": [3], "head": head, "rows": rows, "command": "vlm replay output/mine --step 3"}
    (folder / "spikes.html").write_text(spikes_page("Worst steps", "output/mine", curve, curve, **shown))
    return {name: folder / f"{name}.html" for name in ("step", "spikes")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["step", "spikes"])
def test_a_page_is_readable_at_any_width_and_runs_nothing(
    browser: Browser, pages: dict[str, Path], name: str, scheme: str
) -> None:
    for width in (1280, 390):
        page = opened(browser, pages[name], width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.title() in ("Step 3", "Worst steps")
        assert axe_faults(page) == []
        page.context.close()
