"""A video on the chat page in a real browser: upload, ask, answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from vlm.inference.engine import Engine
from vlm.serve.gradio import app as gradio_app
from vlm.serve.gradio.layout import build  # noqa: F401  the page needs gradio

from ..golden.helpers_lynx import LynxCase
from ..runners.lynx_small import CASE, moving_square
from .conftest import CHROMIUM, FLAGS

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def test_clip_is_uploaded_and_asked_about(tmp_path: Path) -> None:
    engine = Engine.load(LynxCase(CASE).shipped(), device="cpu")
    options = {"max_new_tokens": 4, "num_beams": 1, "do_sample": False}
    app = gradio_app.launch(engine, port=gradio_app.free_port("127.0.0.1", None), generation=options, block=False)
    with sync_playwright() as playwright:
        browser: Browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(20000)
        page.goto(app.local_url)
        page.set_input_files("#question input[type=file]", moving_square(tmp_path / "a.mp4", (255, 0, 0)))
        page.wait_for_selector("#question .thumbnail-item")
        page.fill("#question textarea", "What moves?")
        page.click("#send button, button#send")
        expect(page.locator("#chat .bot").first).to_be_visible()
        expect(page.locator("#chat .user video").first).to_be_visible()
        page.screenshot(path=str(tmp_path / "page.png"))
        browser.close()
    app.close()
