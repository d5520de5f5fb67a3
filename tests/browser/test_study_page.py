"""The page of a study in a real browser: contrast, labels, width, sorting, curves; nothing in it is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from vlm.runners.study.report.html import report_page
from vlm.runners.study.report.summary import summarise
from vlm.runners.study.results import CellResult

from ..runners.study_report.made import axis, grid, six_bridges
from ..runners.study_report.test_report import hostile_study
from .conftest import CHROMIUM
from .test_chat_page import AUDIT, axe_faults
from .test_eval_pages import opened

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"), pytest.mark.heavy]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole study, one with failures, a grid of two axes, and one whose texts attack the page."""
    folder = tmp_path_factory.mktemp("pages")
    study, results = six_bridges(folder, questions=120)
    failed = list(results)
    failed[4] = CellResult(results[4].cell, "failed", "loss is nan at step 120 " * 20)
    failed[9] = CellResult(results[9].cell, "missing")
    failed[16] = replace(results[16], state="trained", scores={}, answers={})
    two = [axis("model.bridge", ["linear", "mlp", "perceiver"]), axis("data", ["captions", "questions", "both"])]
    (folder / "bad").mkdir()
    made = {
        "whole": (study, results),
        "failed": (study, failed),
        "grid": grid(two, lambda levels: 0.5 + 0.1 * (levels["data"] == "both"), folder, questions=120),
        "hostile": hostile_study(folder / "bad"),
    }
    for name, (one, found) in made.items():
        (folder / f"{name}.html").write_text(report_page(summarise(one, found), {"unseen": str(folder)}))
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("whole", 1280, "dark"),
        ("whole", 390, "light"),
        ("failed", 390, "dark"),
        ("grid", 1280, "light"),
        ("hostile", 390, "light"),
    ],
)
def test_a_page_can_be_read_by_all(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page = opened(browser, pages[name], width, scheme)
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert {*page.evaluate(AUDIT, {"phone": width < 800}), *axe_faults(page)} == set()
    assert page.evaluate("document.querySelectorAll('main script, main img:not([src^=\"data:\"])').length") == 0
    page.context.close()


def test_the_table_sorts_and_lines_can_be_told_apart(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["whole"], 1480, "light")
    names = page.locator("table.study tbody th")

    def click(head: str) -> list[str]:
        page.locator("table.study thead th", has_text=head).locator("button").click()
        return [text.split("\n")[0].strip() for text in names.all_inner_texts()]

    assert click("trained")[0] == "gated cross-attention" and click("trained")[0].startswith("linear")
    assert click("model.bridge")[0] == "gated cross-attention" and click("verdict")[-1] != ""
    assert click("unseen/accuracy")[0] == "prefix + adapters"
    expect(page.locator("table.study thead th", has_text="unseen/accuracy")).to_have_attribute(
        "aria-sort", "descending"
    )
    plot = page.locator(".plot", has_text="Training loss")
    plot.scroll_into_view_if_needed()
    box = plot.locator("svg.curves").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 20)
    expect(plot.locator(".tip")).to_contain_text("gated cross-attention · step 17")
    plot.get_by_role("button", name="gated cross-attention").click()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 22)
    expect(plot.locator(".tip")).to_contain_text("perceiver · step 17")
    scatter = page.locator(".plot", has_text="by trained parameters")
    scatter.scroll_into_view_if_needed()
    square = scatter.locator("svg.scatter rect").bounding_box()
    assert square is not None
    page.mouse.move(square["x"] + 4, square["y"] + 4)
    expect(scatter.locator(".tip")).to_contain_text("linear · ")
    expect(scatter.locator(".tip")).to_contain_text("130k trained parameters")
    page.context.close()


def test_a_phone_shows_the_score_beside_the_name(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["grid"], 390, "light")
    row = page.locator("table.study tbody tr").first
    assert row.locator(".rest").first.is_visible() and not row.locator("td.level").is_visible()
    score = row.locator("td.score").bounding_box()
    assert score is not None and score["x"] + 120 < 390
    page.context.close()
