"""The chat page in a real browser: images, answers that grow, stop, branches, files, access."""

from __future__ import annotations

import base64
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from vlm.common.types import Image, Message, Text
from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION
from vlm.serve.gradio import app as gradio_app
from vlm.serve.gradio.uploads import upload_folder

from ..inference.small import CASE, write_config
from .conftest import CHROMIUM

IMAGE = CASE / "image.png"
OTHER = CASE / "data" / "cc_sbu_align" / "image" / "2.jpg"
AUDIT = (Path(__file__).parent / "audit.js").read_text(encoding="utf-8")
GREEDY = EVALUATION.replace(max_new_tokens=24)
SECONDS_PER_TOKEN = 0.03

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_config(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[str]:
    """Answers to two questions in a row, straight from the engine."""
    messages = [Message("user", (Image(str(IMAGE)), Text("What is in the image?")))]
    first = engine.generate([messages], GREEDY)[0]
    messages += [Message("assistant", (Text(first),)), Message("user", (Text("And what else?"),))]
    return [first, engine.generate([messages], GREEDY)[0]]


@pytest.fixture(scope="module")
def address(engine: Engine, expected: list[str]) -> Iterator[str]:
    head = engine.model.llm.model.get_output_embeddings()  # one call a step
    slow = head.register_forward_hook(lambda *_: time.sleep(SECONDS_PER_TOKEN))
    tiny = dataclasses.replace(engine.config.model, model_type="tiny")  # so that the page offers painted examples
    engine.config = dataclasses.replace(engine.config, model=tiny)
    page = gradio_app.launch(
        engine, port=gradio_app.free_port("127.0.0.1", None), generation=dataclasses.asdict(GREEDY), block=False
    )
    yield page.local_url
    page.close()
    slow.remove()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(15000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#question textarea")
    yield page
    page.close()
    assert faults == []


def upload(page: Page, *files: Path | dict) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_label("Upload a file").click()
    chooser.value.set_files(list(files))


def upload_image(page: Page) -> None:
    upload(page, IMAGE)
    expect(page.locator("#question img")).to_be_visible()


def ask(page: Page, question: str, accepted: bool = True) -> None:
    page.locator("#question textarea").fill(question)
    page.locator("#question textarea").press("Enter")
    if accepted:  # the page empties the box in the same update that disables Send
        expect(page.locator("#question textarea")).to_have_value("")


def axe_faults(page: Page) -> list[str]:
    """What the axe engine finds, as ``impact rule: element``."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{v['impact']} {v['id']}: {n['html'][:120]}" for v in found for n in v["nodes"]]


def bot(page: Page) -> str:
    """Text of the last answer."""
    found = page.locator("#chat .bot.message, #chat .message.bot")
    return found.last.inner_text().strip() if found.count() else ""


def wait_until_done(page: Page) -> None:
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#stop")).to_be_disabled()


def same(shown: str, text: str) -> bool:
    """White space and Markdown aside."""
    return _letters(shown) == _letters(text)


def _letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


def test_two_turns_are_streamed_and_remembered(page: Page, expected: list[str]) -> None:
    upload_image(page)
    ask(page, "What is in the image?")
    lengths = set()
    while page.locator("#send").is_disabled():
        lengths.add(len(bot(page)))
        page.wait_for_timeout(40)
    wait_until_done(page)
    assert len(lengths - {0}) >= 3, "the answer did not grow on the page"
    assert same(bot(page), expected[0])
    expect(page.locator("#chat .user img")).to_be_visible()
    ask(page, "And what else?")
    expect(page.locator("#chat .user.message, #chat .message.user").last).to_contain_text("And what else?")
    wait_until_done(page)
    page.wait_for_timeout(200)
    assert same(bot(page), expected[1])


def test_stop_regenerate_restart(page: Page, expected: list[str]) -> None:
    upload_image(page)
    ask(page, "What is in the image?")
    shown = r"e.innerText.replace(/[^\p{L}\p{N}]/gu, '').includes(start)"
    bots = "[...document.querySelectorAll('#chat .bot')]"
    page.wait_for_function(f"(start) => {bots}.some(e => {shown})", arg=_letters(expected[0])[:2])
    page.locator("#stop").click()
    wait_until_done(page)
    stopped = _letters(bot(page))
    assert 0 < len(stopped) < len(_letters(expected[0]))
    assert _letters(expected[0]).startswith(stopped)
    page.locator("#again").click()
    expect(page.locator("#stop")).to_be_enabled()
    wait_until_done(page)
    page.wait_for_timeout(200)
    assert same(bot(page), expected[0])
    upload_image(page)
    page.locator("#restart").click()
    expect(page.locator("#chat .user")).to_have_count(0)
    expect(page.locator("#question img")).to_have_count(0)
    expect(page.locator("#again")).to_be_disabled()
    ask(page, "No image now?")
    wait_until_done(page)
    assert bot(page)


def test_a_file_that_is_no_image_is_told_and_the_page_lives_on(page: Page) -> None:
    toast = page.locator(".toast-wrap")
    ask(page, "  ", accepted=False)
    expect(toast).to_contain_text("type a question")
    upload(page, {"name": "note.png", "mimeType": "image/png", "buffer": b"this is no image"})
    expect(page.locator("#question img")).to_have_count(1)
    ask(page, "What is it?", accepted=False)
    expect(toast).to_contain_text("note.png")
    expect(page.locator("#question textarea")).to_have_value("What is it?")
    expect(page.locator("#chat .user")).to_have_count(0)
    expect(page.locator("#chat .error")).to_have_count(0)
    page.locator("#question [aria-label='Remove file']").first.click()
    expect(page.locator("#question img")).to_have_count(0)
    upload_image(page)
    ask(page, "And this?")
    wait_until_done(page)
    before = bot(page)
    assert before
    ask(page, "", accepted=False)
    page.wait_for_timeout(1000)  # while one request is on its way, Enter sends no other
    ask(page, "word " * 2000, accepted=False)  # more than the model reads
    expect(toast).to_contain_text("positions")
    expect(page.locator("#chat")).not_to_contain_text("Loading content")
    assert bot(page) == before and page.locator("#chat .user.message, #chat .message.user").count() == 2
    expect(page.locator("#chat .error")).to_have_count(0)
    expect(page.locator("#question textarea")).to_be_focused()


def test_an_expired_upload_is_told(page: Page) -> None:
    upload_image(page)
    for file in upload_folder().root.rglob("image.png"):
        file.unlink()
    ask(page, "What is it?", accepted=False)
    expect(page.locator(".toast-wrap")).to_contain_text("upload it again")
    expect(page.locator("#chat .error:visible")).to_have_count(0)


def test_what_is_written_stays_text(page: Page) -> None:
    ask(page, "<img src=x onerror='window.hit = 1'> <b id=bold>bold</b> ![a](https://elsewhere.example/a.png)")
    wait_until_done(page)
    shown = page.locator("#chat .user.message, #chat .message.user").last
    expect(shown).to_contain_text("<b id=bold>bold</b>")
    assert page.locator("#bold").count() == 0 and page.evaluate("window.hit") is None


def test_visitors_are_answered_together_and_leave(
    page: Page, browser: Browser, address: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SECONDS_PER_TOKEN", 0.2)
    other = browser.new_page()
    other.goto(address)
    other.wait_for_selector("#question textarea")
    before = engine.stats()
    ask(page, "What is in the image?")
    ask(other, "And mine?")
    _until(page, lambda: engine.stats().running == 2)
    other.close()
    _until(page, lambda: engine.stats().cancelled == before.cancelled + 1)
    page.locator("#stop").click()
    wait_until_done(page)
    expect(page.locator("#figures")).to_contain_text("stopped")


def _until(page: Page, condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("waited 5 seconds")


def test_several_images_and_an_edited_question(page: Page) -> None:
    upload(page, IMAGE, OTHER)
    expect(page.locator("#question img")).to_have_count(2)
    ask(page, "What is <b>in</b> them?")
    wait_until_done(page)
    expect(page.locator("#chat .user img")).to_have_count(2)
    first = bot(page)
    numbers = page.locator("#figures")
    expect(numbers).to_contain_text("tokens/s")
    expect(numbers).to_contain_text("first after")
    expect(numbers).to_contain_text("context")
    ask(page, "And?")
    wait_until_done(page)
    page.locator("#chat button[aria-label=Edit]").first.focus()
    page.keyboard.press("Enter")
    page.locator("#chat textarea").fill("Which colour?")
    page.locator("#chat button[aria-label=Submit]").click()
    expect(page.locator("#chat")).not_to_contain_text("And?")
    wait_until_done(page)
    expect(page.locator("#chat")).to_contain_text("Which colour?")
    expect(page.locator("#chat .user img")).to_have_count(2)
    expect(page.locator("#branch")).to_have_text("Branch 2 of 2")
    page.locator("#earlier").click()
    expect(page.locator("#chat")).to_contain_text("What is <b>in</b> them?")
    expect(page.locator("#chat")).to_contain_text("And?")
    page.locator("#undo").click()
    expect(page.locator("#question textarea")).to_have_value("And?")
    expect(page.locator("#branch")).to_have_text("Branch 3 of 3")
    assert bot(page) == first


def test_paste_and_drop(page: Page) -> None:
    """As a browser does it: a file of the clipboard, and one that is dropped on the conversation."""
    give = """([kind, target, data]) => {
      const moved = new DataTransfer();
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      moved.items.add(new File([bytes], kind + '.png', {type: 'image/png'}));
      const more = {bubbles: true, cancelable: true};
      const event = kind === 'paste' ? new ClipboardEvent('paste', {clipboardData: moved, ...more})
        : new DragEvent('drop', {dataTransfer: moved, ...more});
      document.querySelector(target).dispatchEvent(event);
    }"""
    data = base64.b64encode(IMAGE.read_bytes()).decode()
    for count, (kind, target) in enumerate((("paste", "#question textarea"), ("drop", "#lanes")), start=1):
        page.evaluate(give, [kind, target, data])
        expect(page.locator("#question img")).to_have_count(count)
    ask(page, "What are they?")
    wait_until_done(page)
    expect(page.locator("#chat .user img")).to_have_count(2)


def test_a_conversation_is_saved(page: Page, tmp_path: Path) -> None:
    upload_image(page)
    ask(page, "What is <i>it</i>?")
    wait_until_done(page)
    for name in ("html", "json"):
        with page.expect_download() as saved:
            page.locator(f"#{name}").click()
        assert saved.value.suggested_filename == f"conversation.{name}"
        text = Path(saved.value.path()).read_text(encoding="utf-8")
        assert f"data:image/{'jpeg' if name == 'html' else 'png'};base64," in text
        assert ("&lt;i&gt;it" if name == "html" else "<i>it") in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_everybody_can_use_it(browser: Browser, address: str, size: tuple[int, int], scheme: Any) -> None:
    phone = size[0] < 800
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=phone, is_mobile=phone
    )
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#question textarea")
    audit: Any = lambda: {*page.evaluate(AUDIT, {"phone": phone}), *axe_faults(page)}  # noqa: E731
    found = audit()
    for step in (lambda: None, lambda: upload_image(page), lambda: ask(page, "What is it, " + "long" * 20)):
        step()
        for name in ("#question textarea", "#send"):
            box = page.locator(name).bounding_box()
            assert box and box["y"] + box["height"] <= height and page.evaluate("scrollY") == 0, (name, box)
    wait_until_done(page)
    page.locator("#again").click()  # which shows a notice and makes a branch
    expect(page.locator("#branch")).to_be_visible()
    wait_until_done(page)
    found |= audit()
    for name in ("#camera-box", "#settings", "#prompt"):
        page.locator(f"{name} button").first.click()
    expect(page.locator("#read textarea")).to_be_visible()
    found |= audit()
    context.close()
    assert found == set()


def test_example_fills_in_image_and_question(page: Page) -> None:
    expect(page.locator("#examples button")).to_have_count(8)
    page.locator("#examples button").nth(1).click()
    expect(page.locator("#question img")).to_be_visible()
    expect(page.locator("#question textarea")).to_have_value("What color is the circle?")
    page.locator("#send").click()
    expect(page.locator("#question textarea")).to_have_value("")
    expect(page.locator("#chat .user img")).to_be_visible()
    wait_until_done(page)
    assert bot(page)


def test_image_of_the_webcam(page: Page) -> None:
    """Chromium's own camera shows a clock."""
    page.locator("#camera-box button").first.click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("() => [...document.querySelectorAll('#camera video')].some((v) => v.videoWidth > 0)")
    page.wait_for_timeout(500)  # the first frame
    page.locator("#camera button[aria-label='capture photo']").click()
    expect(page.locator("#question img")).to_be_visible()
    ask(page, "What is in the image?")
    wait_until_done(page)
    expect(page.locator("#chat .user img")).to_be_visible()
    assert bot(page)


def test_settings_reach_the_answer(page: Page, expected: list[str]) -> None:
    page.locator("#settings button").first.click()
    for label in (
        "Sample",
        "Temperature",
        "Top-p",
        "Top-k",
        "Beams",
        "Longest answer (tokens)",
        "Repetition penalty",
        "Seed",
    ):
        expect(page.locator("#settings").get_by_text(label, exact=True).first).to_be_visible()
    tokens = page.locator("#settings").get_by_label("number input for Longest answer (tokens)")
    tokens.fill("4")
    tokens.press("Tab")
    upload_image(page)
    ask(page, "What is in the image?")
    wait_until_done(page)
    page.wait_for_timeout(200)
    short = _letters(bot(page))
    assert 0 < len(short) < len(_letters(expected[0]))
    assert _letters(expected[0]).startswith(short)
