"""The pages of evaluations in a real browser: contrast, labels, width, sorting and filtering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from vlm.cli.main import main
from vlm.pages.card import page as card_page
from vlm.tasks.benchmarks.base import Score

from ..runners.test_compare_eval import NAMES, said, write_card, write_run
from .conftest import CHROMIUM
from .test_chat_page import AUDIT, axe_faults

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"), pytest.mark.heavy]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from vlm.tasks.scoring.statistics import per_item

    folder = tmp_path_factory.mktemp("pages")
    kinds = ["color" if k % 2 else "shape" for k in range(40)]
    for name, right in (("a", 10), ("b", 30)):
        values = [float(k < right) for k in range(40)]
        write_run(folder / name, [per_item("accuracy", NAMES, values, groups=kinds)], said([name] * 40))
    assert (
        main(["eval", "compare", str(folder / "a"), str(folder / "b"), "--output", str(folder / "compare.html")]) == 0
    )
    for name, value, weights in (("one", 0.5, "a"), ("two", 0.7, "b")):
        files = [{"file": f"{name}.pt", "sha256": weights * 64}]
        write_card(folder / name, value, weights=files)
        write_card(folder / f"{name}-lmms", 1 - value, protocol="lmms", weights=files)
    assert main(["eval", "leaderboard", str(folder), "--output", str(folder / "board.html")]) == 0
    scores = [Score("accuracy", 0.5, 10, [0.4, 0.6]), Score("yes", 0.3, 10, [0.1, 0.5])]
    dataset = {
        "name": "pope", "protocol": {"name": "official", "benchmark": "POPE", "measures": "?", "about": "A rule."},
        "asked": {"questions": 10}, "cost": {"seconds": 1.0}, "warnings": ["The model answers without looking."],
        "errors": {"count": 1, "first": [{"id": "1", "image": "right", "reason": "gone"}]}, "unread": 1,
        "prompt": {"id": "0", "runs": [("c", "Human:"), ("m", "[image 1: 3 tokens]")], "ids": [1, 2]},
        "head": ["", "questions"], "rows": [["accuracy", "10"]], "note": "", "examples": {}, "unscored": "",
        "controls": {"right": scores, "none": scores}, "groups": scores,
    }  # fmt: skip
    groups: dict[str, Any] = {"date": "2026", "model": {"composition": "a/b"}, "commands": {"made by": "vlm eval x"}}
    groups["weights"] = [{"format": "f", "file": "x.pt", "bytes": 5, "sha256": "0" * 64}]
    (folder / "card.html").write_text(card_page("mine", groups, [dataset]))
    return {name: folder / f"{name}.html" for name in ("card", "compare", "board")}


def opened(browser: Browser, file: Path, width: int, scheme: Any) -> Page:
    phone = width < 800
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=phone, is_mobile=phone
    )
    page = context.new_page()
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or pytest.fail(r.url))
    page.goto(file.as_uri())
    return page


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
@pytest.mark.parametrize("name", ["card", "compare", "board"])
def test_pages_can_be_read_by_all(browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: Any) -> None:
    page = opened(browser, pages[name], width, scheme)
    assert {*page.evaluate(AUDIT, {"phone": width < 800}), *axe_faults(page)} == set()
    widths = page.evaluate(
        "[...document.querySelectorAll('.drawn svg')].map(e => [e.getBoundingClientRect().right,"
        " e.closest('.card').getBoundingClientRect().right])"
    )
    assert all(bar <= card for bar, card in widths)
    page.context.close()


def test_the_leaderboard_sorts_and_filters(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["board"], 1280, "light")
    rows = page.locator("tbody tr:visible th span:last-child")

    def order() -> list[str]:
        return [text.split()[0] for text in rows.all_inner_texts()]

    official = page.locator("th", has_text="official").locator("button")
    official.click()
    assert order() == ["two.pt", "one.pt"]
    expect(page.locator("th", has_text="official")).to_have_attribute("aria-sort", "descending")
    official.click()
    assert order() == ["one.pt", "two.pt"]
    page.locator("th", has_text="lmms").locator("button").click()
    assert order() == ["one.pt", "two.pt"]
    page.locator("#models").fill("TWO.pt")
    assert order() == ["two.pt"]
    page.locator("#benchmarks").fill("lmms")
    assert page.locator("thead th:visible").count() == 2
    page.locator("#models").fill("nothing")
    expect(page.locator("#empty")).to_be_visible()


def test_questions_won_and_lost_are_filtered(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["compare"], 1280, "light")
    assert page.locator("article:visible").count() == 20
    page.locator("input[type=search]").fill("q11")
    assert page.locator("article:visible").count() == 1
