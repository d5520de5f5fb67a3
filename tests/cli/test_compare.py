"""``vlm compare``: prediction files in the published layouts as one page, in a browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm.cli.main import main
from vlm.common.errors import DataError
from vlm.pages.compare import page, read_predictions

OWL = [
    {"image": image, "question_id": number, "question": question, "outout": answer, "type": kind}
    for number, image, question, answer, kind in (
        (1, "1.jpg", "有什么有趣的地方？", "一只猫。\n很大。", "reasoning"),
        (2, "1.jpg", "你为什么这样认为呢？", "<b>1 < 2</b>", "knowledeg vqa"),
        (3, "2.jpg", "谁画的？", "不知道。", "vqa"),
    )
]


def write(file: Path, records: list[dict[str, Any]]) -> str:
    lines = "\n".join(json.dumps(r) for r in records)
    file.write_text(lines if file.suffix == ".jsonl" else json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return str(file)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (1200, 800), "red").save(folder / "1.jpg")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    others = [{**r, "text_output": f"answer {r['question_id']}"} for r in reversed(OWL[:2])]
    for record in others:
        del record["outout"]
    return [write(tmp_path / "published.json", OWL), f"ours={write(tmp_path / 'lines.jsonl', others)}"]


def test_page_has_questions_images_and_all_answers(files, images, tmp_path, capsys) -> None:
    target = tmp_path / "deep" / "page.html"
    asked = ["compare", *files, "--media-root", str(images), "--output", str(target), "--title", "Owl & co"]
    assert main(asked) == 0
    assert "2 prediction files; 1 images not found, the first is 2.jpg" in capsys.readouterr().out
    text = target.read_text(encoding="utf-8")
    assert text.count("<article ") == 2  # one per image
    assert text.count("<section ") == 3
    for part in (
        "Owl &amp; co",
        "有什么有趣的地方？",
        "一只猫。\n很大。",
        "&lt;b&gt;1 &lt; 2&lt;/b&gt;",
        "knowledge vqa",
    ):
        assert part in text
    assert text.index("answer 1") < text.index("answer 2")  # the first file gives the order
    assert re.findall(r"<td>(\d of 3)</td>", text) == ["3 of 3", "2 of 3"]
    assert text.count("no answer") == 1 and "image not found" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "the page must need no other file"
    assert len(text) < 40_000  # images are made small


def test_records_without_ids_or_images(tmp_path: Path) -> None:
    one = write(tmp_path / "a.json", [{"question": "x?", "output": "1"}, {"question": "x?", "output": None}])
    text, lost = page([read_predictions(one)])
    assert text.count("<section ") == 2 and "no image" in text and lost == []
    assert text.count("no answer") == 1


@pytest.mark.parametrize(
    "records, said",
    [
        ([], "no record"),
        ([{"image": "1.jpg"}], "records without a question"),
        ([OWL[0], OWL[0]], "question_id 1 occurs twice"),
        (
            [{**OWL[0], "question": "another?"}],
            "question 1 is '有什么有趣的地方？' in published and 'another?' in other",
        ),
        ([{**OWL[0], "question_id": 9}], "no question in common"),
    ],
)
def test_files_that_do_not_fit(records, said, files, tmp_path, capsys) -> None:
    other = write(tmp_path / "other.json", records)
    assert main(["compare", files[0], other, "--output", str(tmp_path / "page.html")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_files_that_cannot_be_read(tmp_path: Path, images: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*nowhere\.json"):
        read_predictions(tmp_path / "nowhere.json")
    (images / "3.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.jpg"):
        page([read_predictions(write(images / "3.json", [{**OWL[0], "image": "3.jpg"}]))], images)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_types_and_search_in_a_browser(files, images, tmp_path) -> None:
    from playwright.sync_api import sync_playwright

    target = tmp_path / "page.html"
    assert main(["compare", *files, "--media-root", str(images), "--output", str(target)]) == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        faults: list[str] = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(target.as_uri())

        def shown() -> list[str]:
            return [s.inner_text().split("\n")[0][:1] for s in tab.locator("section").all() if s.is_visible()]

        assert shown() == ["1", "2", "3"]
        tab.get_by_role("button", name="vqa", exact=True).click()
        assert shown() == ["3"] and tab.locator("article").nth(0).is_hidden()
        tab.get_by_role("button", name="all").click()
        tab.get_by_label("Search").fill("ANSWER 2")
        assert shown() == ["2"]
        tab.get_by_label("Search").fill("nowhere")
        assert tab.locator("#empty").is_visible()
        size = tab.evaluate("[...document.images].map(i => i.naturalWidth)")
        assert size == [560]
        browser.close()
    assert faults == []
