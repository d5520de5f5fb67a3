"""Thumbs and corrections in a real browser; what they leave is looked at and trained on."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from vlm.cli.main import main
from vlm.common.types import Message, Text
from vlm.inference.engine import Engine
from vlm.serve.feedback import folder as module
from vlm.serve.gradio import app as gradio_app

from ..inference.small import write_config
from .conftest import CHROMIUM
from .test_chat_page import AUDIT, IMAGE, ask, axe_faults, bot, same, upload_image, wait_until_done

OPTIONS = {"max_new_tokens": 6, "do_sample": False, "num_beams": 1}

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_config(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "from_visitors"


@pytest.fixture(scope="module")
def address(engine: Engine, folder: Path) -> Iterator[str]:
    port = gradio_app.free_port("127.0.0.1", None)
    page = gradio_app.launch(engine, port=port, generation=OPTIONS, feedback=folder, block=False)
    yield page.local_url
    page.close()


def visit(browser: Browser, address: str, phone: bool = False) -> Page:
    size: Any = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
    page = browser.new_context(viewport=size, has_touch=phone, is_mobile=phone).new_page()
    page.set_default_timeout(15000)
    page.goto(address)
    page.wait_for_selector("#question textarea")
    return page


def thumb(page: Page, name: str) -> None:
    page.locator(f"#chat button[aria-label={name}]").last.click()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def test_feedback_is_kept_shown_and_trained_on(
    browser: Browser, address: str, engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = visit(browser, address)
    expect(page.locator("#kept")).to_contain_text("from_visitors")
    expect(page.locator("#feedback")).to_be_hidden()
    upload_image(page)
    ask(page, "What is in the image?")
    wait_until_done(page)
    first = engine.chat("What is in the image?", str(IMAGE), **OPTIONS)
    thumb(page, "Like")
    expect(page.locator("#rated")).to_contain_text("thumb up")
    thumb(page, "Dislike")
    expect(page.locator("#rated")).to_contain_text("thumb down")
    (found,) = records(folder)
    assert (found["verdict"], found["left_out"]) == ("down", "a thumb down without a correction")
    page.locator("#correction textarea, #correction input").fill("a small bird")
    page.keyboard.press("Enter")
    expect(page.locator("#rated")).to_contain_text("your correction")
    assert page.locator("#chat button[aria-label=Disliked]").count() == 1
    assert page.evaluate(AUDIT, {"phone": False}) == [] and axe_faults(page) == []
    ask(page, "And what else?")
    wait_until_done(page)
    expect(page.locator("#chat button[aria-label=Like]")).to_have_count(2)
    second = bot(page)
    expect(page.locator("#correction textarea, #correction input")).to_have_value("a small bird")
    thumb(page, "Like")
    expect(page.locator("#rated")).to_contain_text("cannot be trained on (the answer is not complete)")
    expect(page.locator("#correction textarea, #correction input")).to_have_value("")
    assert records(folder)[1]["verdict"] == "up"
    page.locator("#correction textarea, #correction input").fill("a branch")
    page.locator("#keep-words").click()
    expect(page.locator("#rated")).to_contain_text("your correction")
    page.locator("#undo").click()
    expect(page.locator("#feedback")).to_be_hidden()
    expect(page.locator("#chat button[aria-label=Disliked]")).to_have_count(1)

    other = visit(browser, address, phone=True)
    upload_image(other)
    ask(other, "Is it a bird?")
    wait_until_done(other)
    thumb(other, "Dislike")
    expect(other.locator("#rated")).to_contain_text("What would have been right?")
    assert other.evaluate(AUDIT, {"phone": True}) == [] and axe_faults(other) == []

    bird, more, third = records(folder)
    assert [r["verdict"] for r in (bird, more, third)] == ["corrected", "corrected", "down"]
    assert same(bird["answer"], first) and [t["value"] for t in bird["conversations"]][-1] == "a small bird"
    assert [t["value"] for t in more["conversations"]][:2] == ["<image>\nWhat is in the image?", bird["answer"]]
    assert same(more["answer"], second) and more["conversations"][-1]["value"] == "a branch"
    assert [file.read_bytes() for file in (folder / "images").iterdir()] == [IMAGE.read_bytes()]

    capsys.readouterr()
    assert main(["data", "show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "feedback (conversation_json, 2 samples)" in shown and "bird" in shown.partition("«")[2].partition("»")[0]
    assert shown.count("«") == 2  # of the dialogue with two answers the second alone
    assert main(["data", "check", str(folder)]) == 0
    assert "2 usable, 0 bad" in capsys.readouterr().out
    options = ["run.max_steps=2", "run.num_workers=0", "run.device=cpu", "run.report=false", "run.trackers=[jsonl]"]
    run = folder.parent / "run"
    assert main(["train", str(folder), "--options", *options, f"run.output_dir={run}"]) == 0
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in log if "step" in line) == 2
    page.context.close()
    other.context.close()


def test_where_nothing_can_be_kept_the_page_says_so_and_goes_on(
    browser: Browser, address: str, engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, before = visit(browser, address), records(folder)
    ask(page, "What is it?")
    wait_until_done(page)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "replace_text", full)
        thumb(page, "Like")
        expect(page.locator(".toast-wrap")).to_contain_text("No space left on device")
    expect(page.locator("#chat button[aria-label=Liked]")).to_have_count(0)
    expect(page.locator("#feedback")).to_be_hidden()
    assert records(folder) == before
    ask(page, "And now?")
    wait_until_done(page)
    given = [Message("user", (Text("What is it?"),))]
    given += [
        Message("assistant", (Text(engine.generate([given], **OPTIONS)[0]),)),
        Message("user", (Text("And now?"),)),
    ]
    assert same(bot(page), engine.generate([given], **OPTIONS)[0])
    page.context.close()


def test_a_page_without_a_folder_does_not_ask(browser: Browser, engine: Engine) -> None:
    port = gradio_app.free_port("127.0.0.1", None)
    plain = gradio_app.launch(engine, port=port, generation=OPTIONS, block=False)
    page = visit(browser, plain.local_url)
    ask(page, "What is it?")
    wait_until_done(page)
    expect(page.locator("#chat button[aria-label='Copy message']")).to_have_count(2)
    for found in ("#chat button[aria-label=Like]", "#kept", "#feedback", "#correction"):
        assert page.locator(found).count() == 0
    page.context.close()
    plain.close()
