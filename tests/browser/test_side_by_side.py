"""Two models on one page in a real browser: the same question to both, by the keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from vlm.common.types import Image, Message, Text
from vlm.inference.engine import Engine
from vlm.serve.gradio import app as gradio_app

from ..inference.small import write_config
from .conftest import CHROMIUM
from .test_chat_page import AUDIT, IMAGE, axe_faults, same, upload_image, wait_until_done

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    config = write_config(tmp_path_factory.mktemp("small"))
    return {"first": Engine.load(config), "<b>second</b>": Engine.load(config, options=["model.template=minigpt_v2"])}


@pytest.fixture(scope="module")
def address(engines: dict[str, Engine]) -> Iterator[str]:
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1}
    page = gradio_app.launch(engines, port=gradio_app.free_port("127.0.0.1", None), generation=options, block=False)
    yield page.local_url
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), pytest.param(390, "light", marks=pytest.mark.heavy)])
def test_both_answer(browser: Browser, address: str, engines: dict[str, Engine], width: int, scheme: Any) -> None:
    phone = width < 800
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=phone, is_mobile=phone
    )
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#question textarea")
    assert page.locator("h2.lane-title").all_inner_texts() == ["first", "<b>second</b>"]
    upload_image(page)
    page.locator("#question textarea").focus()
    page.keyboard.type("What is in the image?")
    page.keyboard.press("Enter")
    expect(page.locator("#question textarea")).to_have_value("")
    wait_until_done(page)
    asked = [[Message("user", (Image(str(IMAGE)), Text("What is in the image?")))]]
    generation = {name: e.options(max_new_tokens=8, do_sample=False, num_beams=1) for name, e in engines.items()}
    for (name, engine), lane in zip(engines.items(), ("#chat", "#chat-2")):
        expect(page.locator(f"{lane} .user img")).to_be_visible()
        assert same(page.locator(f"{lane} .bot").last.inner_text(), engine.generate(asked, generation[name])[0])
    boxes = [page.locator(f"{lane}").bounding_box() for lane in ("#chat", "#chat-2")]
    assert (boxes[0]["y"] == boxes[1]["y"]) != phone  # next to each other, on a phone one over the other
    assert {*page.evaluate(AUDIT, {"phone": phone}), *axe_faults(page)} == set()
    page.locator("#models input").last.focus()
    page.keyboard.press("Space")
    expect(page.locator("#chat-2")).to_be_hidden()
    page.locator("#question textarea").fill("And?")
    page.keyboard.press("Enter")
    wait_until_done(page)
    page.locator("#models input").last.check()
    expect(page.locator("#chat-2")).to_contain_text("(not answered)")
    context.close()
