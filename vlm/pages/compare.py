"""Answers of several models to the same questions, side by side with their images, as one page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError

ANSWERS = ("output", "outout", "text_output", "answer")
"""Fields of a prediction file that hold the answer; the second is how the published OwlEval file spells it."""

QUESTIONS = ("instruction", "question", "prompt")
IDS = ("question_id", "index")
SIDE = 560
"""Largest side of an embedded image in pixels."""

KINDS = {"knowledeg vqa": "knowledge vqa"}
"""Published misspellings of question types -> what is shown."""

STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --ink: #171b22; --soft: #5d6776; --rule: #e2e6ec;
  --fill: #f1f3f7; --accent: #3552c8; }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --card: #1a1f26; --ink: #e6e9ee; --soft: #99a3b1;
  --rule: #2d343e; --fill: #222932; --accent: #8aa4ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.6 system-ui, -apple-system, "Segoe UI",
  Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
main, header { max-width: 1480px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 28px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 14px; letter-spacing: -.01em; }
table { border-collapse: collapse; font-size: 14px; margin-bottom: 16px; }
th, td { text-align: left; padding: 4px 26px 4px 0; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 500; } td + td { font-variant-numeric: tabular-nums; }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); padding: 10px 0; display: flex; flex-wrap: wrap;
  gap: 8px; align-items: center; border-bottom: 1px solid var(--rule); margin-bottom: 18px; }
nav button { font: inherit; font-size: 13.5px; padding: 3px 13px; border-radius: 999px; border: 1px solid var(--rule);
  background: var(--card); color: var(--soft); cursor: pointer; }
nav button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: var(--card); }
nav input { font: inherit; font-size: 14px; padding: 4px 12px; border-radius: 8px; border: 1px solid var(--rule);
  background: var(--card); color: var(--ink); margin-left: auto; width: 240px; }
article { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; margin-bottom: 18px;
  display: grid; grid-template-columns: minmax(180px, 300px) 1fr; }
figure { margin: 0; padding: 18px; background: var(--fill); border-radius: 12px 0 0 12px; }
figure > div { position: sticky; top: 66px; }
figure img { width: 100%; max-height: 460px; object-fit: contain; border-radius: 8px; display: block; }
figcaption { font-size: 12.5px; color: var(--soft); margin-top: 8px; overflow-wrap: anywhere; }
.lost { border: 1px dashed var(--rule); border-radius: 8px; padding: 44px 12px; text-align: center;
  color: var(--soft); font-size: 13.5px; }
section { padding: 16px 22px 20px; min-width: 0; }
section + section { border-top: 1px solid var(--rule); }
.meta { font-size: 12.5px; color: var(--soft); display: flex; gap: 10px; align-items: center; }
.kind { border: 1px solid var(--rule); border-radius: 999px; padding: 0 9px; }
h2 { font-size: 16.5px; line-height: 1.45; margin: 5px 0 12px; font-weight: 600; overflow-wrap: anywhere; }
.answers { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); }
.answers div { background: var(--fill); border-radius: 8px; padding: 9px 14px 12px; min-width: 0; }
.answers b { display: block; font-size: 12px; font-weight: 600; color: var(--accent); margin-bottom: 2px; }
.answers p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.answers .none { color: var(--soft); font-style: italic; }
[hidden] { display: none !important; }
#empty { color: var(--soft); padding: 30px 0; }
@media (max-width: 760px) { article { grid-template-columns: 1fr; } figure { border-radius: 12px 12px 0 0; }
  figure > div { position: static; }
  main, header { padding-left: 14px; padding-right: 14px; } nav input { margin-left: 0; width: 100%; } }
@media print { nav { display: none; } article { break-inside: avoid; } }
"""

SCRIPT = """
const pills = [...document.querySelectorAll("nav button")], search = document.querySelector("nav input");
const show = () => {
  const kind = pills.find((p) => p.ariaPressed === "true").dataset.kind, word = search.value.trim().toLowerCase();
  let left = 0;
  for (const card of document.querySelectorAll("article")) {
    let any = false;
    for (const one of card.querySelectorAll("section")) {
      one.hidden = (kind !== "" && one.dataset.kind !== kind) || !one.textContent.toLowerCase().includes(word);
      any = any || !one.hidden;
      left += !one.hidden;
    }
    card.hidden = !any;
  }
  document.getElementById("empty").hidden = left > 0;
};
for (const pill of pills) pill.addEventListener("click", () => {
  for (const other of pills) other.ariaPressed = String(other === pill);
  show();
});
search.addEventListener("input", show);
"""


@dataclass(frozen=True)
class Predictions:
    """A prediction file: its name on the page, its records by their id, in order."""

    name: str
    records: dict[Any, dict[str, Any]]

    def answer(self, key: Any) -> str | None:
        """The answer to a question, or None."""
        record = self.records.get(key, {})
        field = first_of(ANSWERS, record)
        return None if field is None else str(record[field])


def read_predictions(file: str | Path, name: str = "") -> Predictions:
    """A JSON array or JSON lines of records with a question; with an answer in one of ``ANSWERS``, if they have one.

    Raises:
        DataError: no such file, no records, records without a question, or one id twice.
    """
    from vlm.datasets.base import read_json, records_of

    path = Path(file)
    rows = records_of(read_json(path, "predictions"), str(path))
    if not rows or all(first_of(QUESTIONS, row) is None for row in rows):
        raise DataError(
            f"{path}: {'no record' if not rows else 'records without a question'}",
            fix=f"the question is expected in {', '.join(QUESTIONS)}",
        )
    by = next((field for field in IDS if all(field in row for row in rows)), None)
    result: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        key = number if by is None else str(row[by])
        if key in result:
            raise DataError(f"{path}: {by} {key} stands twice", fix="give each question its own id")
        result[key] = row
    return Predictions(name or path.stem, result)


def compare(files: Sequence[Predictions]) -> None:
    """Check that the files answer the same questions.

    Raises:
        DataError: an id stands for another question or image in another file, or two files share no question.
    """
    first = files[0]
    for other in files[1:]:
        shared = first.records.keys() & other.records.keys()
        if not shared:
            raise DataError(f"{first.name} and {other.name} have no question in common", fix="compare other files")
        for key in shared:
            mine, theirs = (text_of(QUESTIONS, f.records[key]) for f in (first, other))
            if mine != theirs:
                raise DataError(f"question {key} is {mine!r} in {first.name} and {theirs!r} in {other.name}")


def page(files: Sequence[Predictions], folder: str | Path = "", title: str = "") -> tuple[str, list[str]]:
    """The page, and the names of images that are not there.

    Args:
        files: from :func:`read_predictions`; the first gives the order.
        folder: that the records' images start from.
        title: of the page.

    Raises:
        DataError: see :func:`compare`; an image that is there but cannot be read.
    """
    compare(files)
    keys = list(dict.fromkeys(key for file in files for key in file.records))
    records = {key: next(f.records[key] for f in files if key in f.records) for key in keys}
    kinds = list(dict.fromkeys(kind_of(record) for record in records.values() if kind_of(record)))
    lost: list[str] = []
    cards = []
    for image, group in groupby(keys, key=lambda k: str(records[k].get("image") or "")):
        figure = _figure(image, Path(folder), lost)
        cards.append(f"<article>{figure}<div>{''.join(_question(k, records[k], files) for k in group)}</div></article>")
    title = escape(title or f"{len(keys)} questions, {len(files)} prediction files")
    pills = "".join(f'<button data-kind="{escape(k)}" aria-pressed="false">{escape(k)}</button>' for k in kinds)
    return (
        f'<!doctype html>\n<html lang="zh"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<header><h1>{title}</h1>{_table(files, keys)}</header><main>"
        f'<nav><button data-kind="" aria-pressed="true">all</button>{pills}'
        '<input type="search" placeholder="Search" aria-label="Search"></nav>'
        + "\n".join(cards)
        + f'<p id="empty" hidden>Nothing found.</p></main><script>{SCRIPT}</script></body></html>\n',
        lost,
    )


def _table(files: Sequence[Predictions], keys: Sequence[Any]) -> str:
    rows = ""
    for file in files:
        answers = [a for key in keys if (a := file.answer(key)) is not None]
        mean = f"{sum(map(len, answers)) / len(answers):.0f}" if answers else ""
        rows += f"<tr><td>{escape(file.name)}</td><td>{len(answers)} of {len(keys)}</td><td>{mean}</td></tr>"
    return f"<table><tr><th>file</th><th>answers</th><th>characters per answer</th></tr>{rows}</table>"


def _question(key: Any, record: dict[str, Any], files: Sequence[Predictions]) -> str:
    kind = kind_of(record)
    pill = f'<span class="kind">{escape(kind)}</span>' if kind else ""
    answers = "".join(_answer(file.name, file.answer(key)) for file in files)
    return (
        f'<section data-kind="{escape(kind)}"><div class="meta"><span>{escape(str(key))}</span>{pill}</div>'
        f'<h2>{escape(text_of(QUESTIONS, record))}</h2><div class="answers">{answers}</div></section>'
    )


def _answer(name: str, text: str | None) -> str:
    declared = f"<p>{escape(text)}</p>" if text and text.strip() else '<p class="none">no answer</p>'
    return f"<div><b>{escape(name)}</b>{declared}</div>"


def _figure(image: str, folder: Path, lost: list[str]) -> str:
    if not image:
        return '<figure><div><div class="lost">no image</div></div></figure>'
    file = folder / image
    if file.is_file():
        shown = f'<img alt="" src="{embedded(file)}">'
    else:
        lost.append(image)
        shown = '<div class="lost">image not found</div>'
    return f"<figure><div>{shown}<figcaption>{escape(image)}</figcaption></div></figure>"


def embedded(file: Path, side: int = SIDE) -> str:
    """An image as a JPEG data address, at most ``side`` pixels.

    Raises:
        DataError: it cannot be read.
    """
    from vlm.processors.image.decode import PIXEL_CAP, Opened

    image = Opened(file, str(file), PIXEL_CAP).exact()
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def first_of(names: Sequence[str], record: dict[str, Any]) -> str | None:
    """The first of these fields that a record has."""
    return next((name for name in names if record.get(name) is not None), None)


def text_of(names: Sequence[str], record: dict[str, Any]) -> str:
    """The text of the first of these fields that a record has."""
    name = first_of(names, record)
    value = "" if name is None else record[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def kind_of(record: dict[str, Any]) -> str:
    """The type of a question, its published misspellings corrected."""
    kind = str(record.get("type") or "")
    return KINDS.get(kind, kind)
