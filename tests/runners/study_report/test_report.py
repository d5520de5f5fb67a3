"""What people look at of a study: the table everywhere the same, whatever is in the files, and nothing is run by it."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm.cli.study import report, show
from vlm.common.errors import ConfigError, UserError
from vlm.pages.study.plots import Curve, curves
from vlm.runners.study.cells import Study
from vlm.runners.study.file import Search
from vlm.runners.study.report.changes import differences
from vlm.runners.study.report.examples import examples
from vlm.runners.study.report.html import report_page
from vlm.runners.study.report.summary import summarise
from vlm.runners.study.report.text import as_json, latex, markdown, terminal
from vlm.runners.study.results import CellResult, Cost

from .made import axis, cell_of, grid, result_of, six_bridges, study_of

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{7*7}} \\input{x} | `_*[a](b)"
Made = tuple[Study, list[CellResult]]


@pytest.fixture(scope="module")
def bridges(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[CellResult], Path]:
    """Six bridges with three seeds and 150 questions; one cell failed, one combination is missing, one still runs."""
    folder = tmp_path_factory.mktemp("study")
    study, results = six_bridges(folder, questions=150)
    results[4] = CellResult(results[4].cell, "failed", "loss is nan at step 120\n  fix: lower run.init_lr")
    for k in (9, 10, 11):
        results[k] = CellResult(results[k].cell, "missing")
    running = results[13]
    results[13] = CellResult(running.cell, "running", cost=running.cost, loss=running.loss[:100])
    results[16] = replace(results[16], state="trained", scores={}, answers={})
    return study, results, folder


def test_the_table(bridges: tuple[Study, list[CellResult], Path]) -> None:
    summary = summarise(*bridges[:2])
    assert [row.name for row in summary.rows] == [
        "prefix + adapters",
        "mlp",
        "qformer",
        "linear",
        "gated cross-attention",
        "perceiver",
    ]
    assert dict(summary.counts) == {"done": 12, "trained": 1, "running": 1, "failed": 1, "missing": 3}
    assert summary.reference is not None and summary.reference.name == "linear" and summary.reference.change is None
    best, last = summary.rows[0], summary.rows[-1]
    assert best.score is not None and (best.score.seeds, best.score.questions) == (2, 150)
    assert best.change is not None and best.change.found.value == pytest.approx(
        sum(best.values[s] - summary.reference.values[s] for s in best.values) / 2
    )
    assert summary.comparisons == 4 and last.score is None and last.change is None and last.states == {"missing": 3}
    assert [row.name for row in summary.rows if row.blind] == ["gated cross-attention"]
    assert summary.varying() == ["trained", "minutes"], "all have the same FLOPs"
    assert "trained" in best.fronts and "flops" not in best.fronts and "trained" not in summary.rows[2].fronts
    assert set(best.others) == {"captions/CIDEr", "loss"} and set(best.controls) == {"wrong", "none"}


def test_other_scores_and_losses(bridges: tuple[Study, list[CellResult], Path]) -> None:
    study, results, _ = bridges
    losses = summarise(study, results, "loss")
    assert losses.measure.better == "lower" and losses.rows[0].name == "prefix + adapters"
    page = report_page(replace(losses, study=replace(study, file=replace(study.file, search=Search(trials=9)))), {})
    assert "A search: what did well was tried more often" in page
    assert losses.rows[0].change is not None and losses.rows[0].change.found.value < 0
    assert losses.rows[0].change.p == pytest.approx(0.5), "two seeds have four permutations"
    assert not losses.rows[0].controls and "unseen/accuracy" in losses.rows[0].others
    assert summarise(study, results, "captions/CIDEr").rows[0].score is not None
    with pytest.raises(ConfigError, match="unknown score 'unseen/accurcy'; did you mean 'unseen/accuracy'"):
        summarise(study, results, "unseen/accurcy")
    asked = replace(study, file=replace(study.file, score="captions/CIDEr"))
    assert summarise(asked, results).measure.name == "captions/CIDEr"
    assert summarise(asked, [CellResult(cell, "missing") for cell in study.cells]).measure.name == "loss"


def test_terminal_markdown_latex_and_json_say_the_same(bridges: tuple[Study, list[CellResult], Path]) -> None:
    summary = summarise(*bridges[:2])
    found = json.loads(as_json(summary))
    best = found["combinations"][0]
    score = (
        f"{100 * best['score']['mean']:.1f} ± {50 * (best['score']['interval'][1] - best['score']['interval'][0]):.1f}"
    )
    shown = terminal(summary)
    assert (
        re.search(rf"prefix \+ adapters +{score} ", shown)
        and "failed: mlp, seed 1: loss is nan at step 120\n" in shown + "\n"
    )
    assert f"| prefix + adapters | {score} |" in markdown(summary)
    tex = latex(summary)
    best_tex = score.replace("±", r"$\pm$")
    assert rf"prefix + adapters & \textbf{{{best_tex}}}" in tex
    assert tex.count("\\\\\n") == 7 and r"unseen/accuracy, \%" in tex and r"\begin{tabular}{l" in tex
    assert all(line.count("&") == tex.split("\n")[4].count("&") for line in tex.split("\n") if line.endswith("\\\\"))
    assert best["difference"]["p_holm"] >= best["difference"]["p"] and found["comparisons"] == 4
    assert found["combinations"][-1]["score"] is None and found["cells"]["missing"] == 3


def test_names_that_the_table_or_latex_has_a_meaning_for(tmp_path: Path) -> None:
    r"""After ``\\\\`` LaTeX reads ``[`` as a length and ``*`` as a word of its own."""
    axes = [axis("verdict", ["[1, 2]", "*"]), axis("difference", ["x", "y"])]
    study, results = grid(axes, lambda levels: 0.5 + 0.4 * (levels["difference"] == "y"), tmp_path, seeds=(0, 1))
    tex = latex(summarise(study, results))
    assert tex.count("{[}1, 2{]} & ") == 2 and tex.count("{*} & ") == 2 and "verdict & difference" in tex
    grid_ = [line.removesuffix(r" \\").split(" & ") for line in tex.splitlines() if " & " in line]
    heads, place = grid_[0], grid_[0].index("difference", 2)
    starred = {k for row in grid_[1:] for k, cell in enumerate(row) if "$^{*}$" in cell}
    assert starred == {place} and heads.count("verdict") == 1 and heads.count("difference") == 2


def test_curves_of_a_study_that_has_just_begun() -> None:
    drawn = str(curves([Curve("one", [(1.0, 2.0, 2.0, 2.0)], 0), Curve("none", [])], "Loss"))
    assert "<svg" in drawn and "nan" not in drawn


def test_main_effects_are_shown_by_axis(tmp_path: Path) -> None:
    axes = [axis("a", ["x", "y"]), axis("b", ["1", "2"])]
    study, results = grid(axes, lambda levels: 0.5 + 0.3 * (levels["a"] == "y"), tmp_path, seeds=(0, 1), questions=80)
    summary = summarise(study, results)
    shown = terminal(summary, by="a")
    assert re.search(
        r"\na +mean, % +effect .*\nx +\d\d\.\d +-\d+\.\d .*\ny +\d\d\.\d +\+\d+\.\d .*\nover 2 settings", shown
    )
    page = report_page(summary, {})
    assert page.count('<table class="effect">') == 2 and "Over 2 settings of the other axes." in page


@pytest.mark.parametrize("kind", ["empty", "missing", "losses", "one seed"])
def test_pages_of_studies_that_have_little(tmp_path: Path, kind: str) -> None:
    study, results = six_bridges(tmp_path, seeds=(0,), images=False, questions=30, evaluated=kind != "losses")
    results = {"empty": [], "missing": [CellResult(r.cell, "missing") for r in results]}.get(kind, results)
    summary = summarise(study, results)
    page = report_page(summary, {})
    assert ">nan" not in page and " nan" not in page and "None" not in page
    wanted = {
        "empty": "0 combinations", "missing": "6 missing", "losses": "may come from the seed alone",
        "one seed": "One seed: intervals are over questions alone",
    }  # fmt: skip
    assert wanted[kind] in page and terminal(summary) and markdown(summary) and latex(summary) and as_json(summary)


def hostile_study(folder: Path) -> Made:
    axes = [axis("model.bridge", [HOSTILE, "mlp"]), axis("<b>", ["\\evil & 5 % $x$ #1", "two"])]
    study = study_of(axes, (0, 1), folder, title=HOSTILE, about=HOSTILE)
    results = [result_of(cell, 0.6, folder, 1000, questions=20) for cell in study.cells]
    results[1] = replace(results[1], state="failed", message=HOSTILE)
    Image.new("RGB", (8, 8), "red").save(folder / "secret.png")
    (folder / "inside").mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "inside" / "fine.png")
    (folder / "inside" / "link.png").symlink_to(folder / "secret.png")
    media = ["../secret.png", str(folder / "secret.png"), "link.png", "fine.png", "https://example.com/a.png"]
    for k, result in enumerate(results):
        rows = [
            {
                "id": f"{HOSTILE}{n}",
                "question": HOSTILE,
                "answer": HOSTILE,
                "reference": HOSTILE,
                "right": n % 2,
                "media": [path],
            }
            for n, path in enumerate(media)
        ]
        file = folder / f"{k}.jsonl"
        file.write_text(
            "".join(
                json.dumps({"dataset": "unseen", "image": image, **row}) + "\n"
                for row in rows
                for image in ("wrong", "right")
            )
        )
        results[k] = replace(result, answers={"unseen": file})
    return study, results


def test_hostile_texts_are_shown_as_texts(tmp_path: Path) -> None:
    study, results = hostile_study(tmp_path)
    summary = summarise(study, results)
    page = report_page(summary, {"unseen": str(tmp_path / "inside")})
    assert "<script>alert" not in page and "<img src=x" not in page and "&lt;script&gt;alert(1)" in page
    assert "{{7*7}}" in page and page.count("<script>") == 1
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and page.count("data:image/jpeg") == 1, "only fine.png"
    tex = "".join(line for line in latex(summary).splitlines() if not line.startswith("%"))
    text = markdown(summary)
    assert (
        r"\textbackslash{}evil \& 5 \% \$x\$ \#1" in tex
        and "\\input" not in tex
        and "<script" not in text.replace(r"\<", "")
    )
    tables = [line.count(" | ") for line in text.split("\n") if line.startswith("| ")]
    assert tables == [13] * 6 + [4] * 8, "no text ends a cell"
    page = report_page(summary, {})
    assert "data:image" not in page and "--media-root" in page


def test_the_same_questions_for_all(tmp_path: Path) -> None:
    study, results = six_bridges(tmp_path, questions=100)
    summary = summarise(study, results)
    found = examples(summary, {"unseen": str(tmp_path)})
    assert len(found.examples) == 10 and all(len(e.answers) == 6 and e.images for e in found.examples)
    assert len({e.images[0] for e in found.examples}) == 10, "ten images"
    again = examples(replace(summary, results=results[::-1]), {})
    assert [e.question for e in again.examples] == [e.question for e in found.examples], "drawn with a seed"
    for given in (given for e in found.examples for given in e.answers.values()):
        assert sum(one.count for one in given) == 3 and all(one.right is not None for one in given)
    results[0].answers["unseen"].write_text('{"id": "q1"}\nnot JSON\n')
    broken = examples(summary, {})
    assert "linear, seed 0" in broken.notes[0] and "not JSON" in broken.notes[0] and len(broken.examples) == 10


def test_what_differs_from_the_reference(tmp_path: Path) -> None:
    study, _ = six_bridges(tmp_path, images=False)
    cells = {cell.key: cell for cell in study.cells}
    found = {dict(key)["model.bridge"]: rows for key, rows in differences(study, cells).items()}
    assert "linear" not in found and found["qformer"] == []
    assert ("model.bridge.1.name", "linear", "mlp") in found["mlp"]
    assert not any(key.startswith(("run.seed", "run.output_dir")) for key, _, _ in found["mlp"])
    assert (
        differences(
            study, {cells_key: cell for cells_key, cell in cells.items() if "linear" not in cell.levels.values()}
        )
        == {}
    )


@pytest.fixture
def asked(bridges: tuple[Study, list[CellResult], Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the parsers give the commands, which find the study of ``bridges`` whatever file is named."""
    study = replace(bridges[0], file=replace(bridges[0].file, evaluate=None))
    monkeypatch.setattr("vlm.runners.study.read.build_study", lambda *a, **k: study)
    monkeypatch.setattr("vlm.runners.study.collect.collect", lambda study: bridges[1])
    return {
        "study": "bridges.yaml",
        "options": [],
        "score": "",
        "by": "",
        "json": None,
        "output": None,
        "media_root": "",
    }


def test_commands(asked: dict[str, Any], bridges: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    numbers = str(tmp_path / "numbers.json")
    for _ in range(2):  # our own files are replaced
        assert show.main(argparse.Namespace(**{**asked, "json": numbers})) == 0
        assert report.main(argparse.Namespace(**{**asked, "output": str(tmp_path / "out")})) == 0
    out = capsys.readouterr().out
    assert (
        "18 cells, 12 done" in out
        and "report.tex: " in out
        and json.loads(Path(numbers).read_text())["comparisons"] == 4
    )
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"report.html", "report.md", "report.tex"}
    (tmp_path / "out" / "report.md").write_text("# mine")
    with pytest.raises(UserError, match=r"report.md exists and was not written by this command"):
        report.main(argparse.Namespace(**{**asked, "output": str(tmp_path / "out")}))
    with pytest.raises(ConfigError, match="unknown axis 'bridge'; did you mean 'model.bridge'"):
        show.main(argparse.Namespace(**{**asked, "by": "bridge"}))


@pytest.mark.heavy
def test_a_large_study_gives_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    axes = [axis("a", list("abcdefghij")), axis("b", list("klmnopqrst"))]
    (tmp_path / "media").mkdir()
    study, results = grid(axes, lambda levels: 0.5 + 0.02 * "abcdefghij".index(levels["a"]), tmp_path, questions=300)
    summary = summarise(study, results)
    page = report_page(summary, {})
    assert summary.comparisons == 99 and len(page) < 2_000_000 and page.count('<th scope="row"') > 100
    assert "92 further in grey" in page and "76 more combinations" in page


def test_costs_of_shared_names_are_means_over_seeds(tmp_path: Path) -> None:
    study = study_of([], (0, 1), tmp_path, cells=[cell_of({}, seed, f"{seed:012x}") for seed in (0, 1)])
    results = [
        CellResult(c, "trained", cost=Cost(9, 3, 10.0 * c.seed, 60.0 + c.seed, memory=c.seed)) for c in study.cells
    ]
    summary = summarise(study, results)
    (row,) = summary.rows
    assert (
        row.name == "base"
        and row.cost == Cost(9, 3, 5.0, 60.5, memory=1)
        and row.costs("minutes") == pytest.approx(60.5 / 60)
    )
    assert '<th scope="row" class="level" data-text="base">' in report_page(summary, {})
