"""``vlm eval compare`` and ``vlm eval leaderboard``: results of runs as tables and pages, whatever is in the files."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm.cli.main import main
from vlm.common.errors import DataError
from vlm.pages.compare_eval import inside
from vlm.pages.leaderboard import csv_text
from vlm.runners.evaluate.results.compare import compare_runs
from vlm.runners.evaluate.results.leaderboard import board, read_cards
from vlm.runners.evaluate.results.stored_run import read_run
from vlm.tasks.scoring.statistics import Metric, per_item

NAMES = [f"q{k}" for k in range(40)]
ABOUT = {"benchmark": "", "protocol": "judge exact", "split": "", "data": "0" * 64, "runs": 1}
HOSTILE = "<script>alert(1)</script>\ud800\"'><img src=x onerror=alert(1)>"


def write_run(
    folder: Path, metrics: list[Metric], answers: dict[str, dict[str, Any]] | None = None, **about: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"dataset": "mine", "image": "right", **ABOUT, **about, **m.stored()} for m in metrics]
    (folder / "evaluation_values.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if answers is not None:
        rows = [{"dataset": "mine", "image": "right", "id": key, **row} for key, row in answers.items()]
        (folder / "evaluation_answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def said(texts: list[str], media: str = "", question: str = "What?") -> dict[str, dict[str, Any]]:
    more = {"media": [media]} if media else {}
    return {n: {"question": question, "answer": t, "reference": "red", **more} for n, t in zip(NAMES, texts)}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """The second run is right on 20 of 40 questions that the first one misses, and wrong on one that it does not."""
    (tmp_path / "media" / "sub").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "media" / "sub" / "1.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    one, two = np.arange(40) < 10, (np.arange(40) < 30) & (np.arange(40) != 3)
    kinds = ["color" if k % 2 else "shape" for k in range(40)]
    first = [
        per_item("accuracy", NAMES, one, groups=kinds),
        per_item("words", NAMES, one * 3.0, unit="number", better="lower"),
    ]
    back = list(range(39, -1, -1))  # the order of a run's questions does not matter
    second = [
        per_item("accuracy", [NAMES[k] for k in back], two[back], groups=[kinds[k] for k in back]),
        per_item("words", NAMES, two * 3.0, unit="number", better="lower"),
    ]
    a = write_run(tmp_path / "a", first, said(["blue"] * 40, "/elsewhere/sub/1.png"))
    b = write_run(tmp_path / "b", second, said([HOSTILE] * 40, str(tmp_path / "secret.png")))
    return a, b


def test_differences_groups_and_questions(runs: tuple[Path, Path]) -> None:
    (found,) = compare_runs(read_run(runs[0]), read_run(runs[1]))
    accuracy, words = found.metrics
    assert (accuracy.found.first, accuracy.found.second) == (0.25, pytest.approx(29 / 40))
    assert accuracy.verdict == "b is better" and accuracy.found.p < 0.001 and 0 < accuracy.found.interval[0] < 19 / 40
    assert words.verdict == "a is better" and words.winner == "a"  # fewer are
    assert [(g.label, g.count) for g in found.groups] == [("color", 20), ("shape", 20)]
    assert (len(found.won), found.lost, found.same) == (20, ["q3"], 19)
    (same,) = compare_runs(read_run(runs[0]), read_run(runs[0] / "evaluation_values.jsonl"))
    assert same.metrics[0].verdict == "no difference shown" and same.metrics[0].found.p == 1 and same.same == 40


def test_terminal_page_and_json(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page, numbers, media = tmp_path / "out" / "page.html", tmp_path / "out" / "n.json", str(tmp_path / "media")
    asked = ["eval", "compare", f"old={runs[0]}", str(runs[1]), "--output", str(page), "--json", str(numbers)]
    assert main([*asked, "--media-root", media]) == 0
    out = capsys.readouterr().out
    assert "mine, judge exact, right image: a = old, b = b" in out
    assert re.search(r"accuracy +25.0% -> +72.5% +\+47.5 points .*p < 0.001\)  b is better", out)
    stored = json.loads(numbers.read_text())["datasets"][0]
    assert stored["lost"] == ["q3"] and stored["metrics"][0]["difference"] == pytest.approx(0.475)
    assert "changed" not in stored["metrics"][0] and stored["protocol"] == "judge exact"
    text = page.read_text(encoding="utf-8")
    assert text.count('data-kind="b wins"') == 1 + 20 and text.count('data-kind="b loses"') == 1 + 1
    assert text.count("data:image/jpeg") == 21, "the end of the path that the first run names is below the folder"
    assert "<script>alert" not in text and "<img src=x" not in text and "&lt;script&gt;alert(1)" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert main(asked) == 0
    assert "data:image" not in page.read_text(), "no image is read without a folder of media"
    assert main(["eval", "compare", str(runs[1]), str(runs[1])]) == 0
    assert "a = b (a), b = b (b)" in capsys.readouterr().out


def test_only_files_below_the_media_root_are_shown(runs: tuple[Path, Path], tmp_path: Path) -> None:
    root = tmp_path / "media"
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    assert inside("sub/1.png", str(root)) == inside("/gone/sub/1.png", str(root)) == (root / "sub" / "1.png").resolve()
    for path in (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "sub/../../secret.png",
        "a\0b",
        "",
        "x" * 9000,
    ):
        assert inside(path, str(root)) is None


@pytest.mark.parametrize(
    ("about", "wanted"),
    [
        ({"protocol": "lmms"}, "mine: the protocol is judge exact in a and lmms in c"),
        ({"data": "1" * 64}, "mine: the hash of the data is 000000000000 in a and 111111111111 in c"),
        ({"split": "test"}, "the split is none in a and test in c"),
    ],
)
def test_numbers_that_mean_something_else_are_refused(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture, about: dict, wanted: str
) -> None:
    other = write_run(runs[0].with_name("c"), [per_item("accuracy", NAMES, [1] * 40)], **about)
    assert main(["eval", "compare", str(runs[0]), str(other)]) == 2
    err = capsys.readouterr().err
    assert wanted in err and err.count("error:") == 1 and "Traceback" not in err


def test_other_questions_and_files_of_another_form(runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, other = read_run(runs[0]), tmp_path / "c"
    write_run(other, [per_item("accuracy", NAMES[:39], [1] * 39)])
    with pytest.raises(DataError, match="1 only in the first, 0 only in the second"):
        compare_runs(a, read_run(other))
    write_run(other, [per_item("accuracy", NAMES, [1] * 40)], said(["x"] * 40, question="Why?"))
    with pytest.raises(DataError, match=r"question q0 is 'What\?' in a and 'Why\?' in c"):
        compare_runs(a, read_run(other))
    write_run(other, [per_item("accuracy", NAMES, [1] * 40)], dataset="another")
    with pytest.raises(DataError, match=r"no dataset in common \(a: mine \(right image\); c: another"):
        compare_runs(a, read_run(other))
    with pytest.raises(DataError, match="no such file"):
        read_run(tmp_path / "gone_card.json")
    with pytest.raises(DataError, match="not the result of an evaluation"):
        read_run(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"expected one file \*_values.jsonl, found none"):
        read_run(tmp_path)
    values = other / "evaluation_values.jsonl"
    for text in (
        "[1]",
        "{",
        '{"label": "x"}',
        "[" * 100_000,
        json.dumps({**per_item("a", ["x"], [1]).stored(), "unit": 1}),
    ):
        values.write_text(text)
        with pytest.raises(DataError, match="evaluation_values.jsonl:1"):
            read_run(other)


def write_card(folder: Path, value: Any = 0.5, data: str = "0" * 64, protocol: str = "official", **card: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    row = {"label": "accuracy", "value": value, "count": 10, "interval": [0.4, 0.6], "unit": "share"}
    whose = {"name": protocol, "data": data, "benchmark": "POPE"}
    pope = {"protocol": whose, "asked": {"split": "random"}, "errors": {"count": 2}, "scores": {"right": [row]}}
    whole = {"model": {"composition": "tiny/a"}, "weights": [{"file": "/x/y.pt", "sha256": "a" * 64}], "settings": {}}
    whole |= {"date": "2026-01-01", "datasets": {"pope": pope}}
    (folder / "evaluation_card.json").write_text(json.dumps(whole | card))
    (folder / "evaluation_card.html").write_text("")
    return folder


def test_different_protocols_and_data_are_different_columns(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = [{"file": "/x/z.pt", "sha256": "b" * 64}]
    write_card(tmp_path / "one", 0.5)
    write_card(tmp_path / "one again", 0.7, date="2026-02-02")
    write_card(tmp_path / "two", 0.6, weights=other)
    write_card(tmp_path / "deep" / "er", 0.6, protocol="lmms", weights=other)
    write_card(tmp_path / "data", 0.9, data="1" * 64)
    cards, faults = read_cards(tmp_path)
    found = board(cards, tmp_path / "page.html")
    assert not faults and len(found.rows) == 2 and len(found.columns) == 3
    official = next(c for c in found.columns if "official" in c.about and "data 0" in c.about)
    values = {cell.text: cell for (_, column), cell in found.cells.items() if column == official.key}
    assert sorted(values) == ["60.0%", "70.0%"] and values["70.0%"].others == 1
    assert values["70.0%"].link == "./one%20again/evaluation_card.html" and values["60.0%"].errors == 2
    assert main(["eval", "leaderboard", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 0
    assert "2 models, 3 benchmarks, from 5 cards" in capsys.readouterr().out
    text = (tmp_path / "page.html").read_text()
    assert text.count("<td data-value=") == 4 and 'aria-sort="none"' in text
    encoded = re.search(r'download="leaderboard.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', text)[1]
    assert base64.b64decode(encoded).decode().count("\n") == 1 + 4


def test_a_row_says_which_run_it_is(tmp_path: Path) -> None:
    write_card(
        tmp_path / "one", weights=[{"file": "/a/b/stage2/checkpoints/step_00000300/model.safetensors", "sha256": "c"}]
    )
    assert "stage2/" in board(read_cards(tmp_path)[0], tmp_path / "page.html").rows[0].trained


def test_a_hostile_card_changes_nothing(tmp_path: Path) -> None:
    write_card(tmp_path / "good")
    write_card(tmp_path / "names", model={"composition": f"=1+1{HOSTILE}"}, settings={HOSTILE: [HOSTILE]})
    write_card(tmp_path / "javascript:alert(1)", 10**14, weights=[{"file": "../../etc/passwd", "sha256": 5}])
    for number, value in enumerate((1e300, float("nan"), 10**400, True, "1", None, [1])):
        write_card(tmp_path / f"value{number}", value)
    for number, text in enumerate(("[" * 200_000, "{", '{"datasets": []}', '{"datasets": {"x": 1}}', "\xff")):
        (write_card(tmp_path / f"text{number}") / "evaluation_card.json").write_text(text, encoding="latin-1")
    (tmp_path / "loop").symlink_to(tmp_path)
    cards, faults = read_cards(tmp_path)
    assert len(cards) == 3 and len(faults) == 7 + 5
    found = board(cards, tmp_path / "page.html", faults)
    assert (
        main(["eval", "leaderboard", str(tmp_path), "--output", str(tmp_path / "page.html"), "--title", HOSTILE]) == 0
    )
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        "<script>alert" not in text
        and "<img src=x" not in text
        and "javascript:" not in text.replace("/javascript:", "")
    )
    links = re.findall(r'href="([^"]*)"', text)
    assert (
        all(link.startswith(("data:", "./")) for link in links)
        and "./javascript%3Aalert%281%29/evaluation_card.html" in links
    )
    assert "'=1+1" in csv_text(found) and ",=1+1" not in csv_text(found) and "passwd" not in " ".join(links)


def test_totals_of_other_modules_are_found(tmp_path: Path) -> None:
    """In a process that has read no benchmark."""
    rows = np.tile([[1.0, 0, 0, 0], [0, 1, 1, 0]], (20, 1))
    run = write_run(tmp_path / "run", [Metric("f1", NAMES, rows, "f1_of_sets")])
    code = "from vlm.cli.main import main; raise SystemExit(main())"
    asked = [sys.executable, "-c", code, "eval", "compare", str(run), str(run)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "no difference shown" in done.stdout, done.stderr
