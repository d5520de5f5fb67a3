"""Studies with made-up results: what people look at can be tested without training anything."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlm.config.api import Config, load_config
from vlm.runners.study.cells import Axis, Cell, Level, StageRun, Study
from vlm.runners.study.file import Evaluation, StudyFile
from vlm.runners.study.results import CellResult, Cost
from vlm.tasks.scoring.statistics import Metric, per_item

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "star", "heart", "triangle")


def axis(name: str, labels: Sequence[str], when: Mapping[str, tuple[str, ...]] | None = None, **more: Any) -> Axis:
    return Axis(name, tuple(Level(label, {name: label}) for label in labels), when=when or {}, **more)


def combinations(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """The full grid; conditional axes only where they are there."""
    found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for labels in itertools.product(*([level.label for level in a.levels] for a in axes)):
        levels = dict(zip([a.name for a in axes], labels))
        kept = {a.name: levels[a.name] for a in axes if all(levels[other] in of for other, of in a.when.items())}
        found[tuple(kept.items())] = kept
    return list(found.values())


@cache
def config(bridge: str = "linear", lr: float = 1e-3) -> Config:
    options = ["model.bridge.1.name=mlp"] if bridge == "mlp" else []
    return load_config("tiny/stage1_pretrain", [*options, f"run.init_lr={lr}"], check="none")


def study_of(
    axes: Sequence[Axis], seeds: Sequence[int], folder: Path, cells: Sequence[Cell] | None = None, **file: Any
) -> Study:
    """A study over the full grid, unless ``cells`` are given."""
    grid = combinations(axes)
    if cells is None:
        cells = [cell_of(levels, seed, f"{k:06x}{seed:06x}") for k, levels in enumerate(grid) for seed in seeds]
    asked = StudyFile(seeds=list(seeds), **{"evaluate": Evaluation(), **file})
    return Study(asked, folder / "bridges.yaml", folder, tuple(axes), ("only",), tuple(cells), tuple(grid[0].items()))


def cell_of(levels: Mapping[str, str], seed: int, name: str) -> Cell:
    made = config(*(["mlp"] if "mlp" in levels.values() else []))
    return Cell(dict(levels), seed, (StageRun("only", name, made),))


def accuracies(skill: float, questions: int, rng: np.random.Generator, label: str = "accuracy") -> Metric:
    """Right answers; hard questions are hard for all: their difficulty comes from their number."""
    hard = np.random.default_rng(7).normal(0, 0.9, questions)
    right = 1 / (1 + np.exp(-(math.log(skill / (1 - skill)) * 1.25 - hard * 1.6))) > rng.random(questions)
    return per_item(label, [f"q{k}" for k in range(questions)], right.astype(float))


def curve(end: float, steps: int, rng: np.random.Generator, every: int = 1) -> list[tuple[float, float]]:
    points = range(every, steps + 1, every)
    noise = 0.06 if every == 1 else 0.01
    return [(s, end + 2.4 * math.exp(-6 * s / steps) + float(rng.normal(0, noise))) for s in points]


def result_of(
    cell: Cell, skill: float, folder: Path, trained: int, questions: int = 600, evaluated: bool = True, **more: Any
) -> CellResult:
    """A finished cell with skills around ``skill``; answers are written below ``folder`` if there are images."""
    rng = np.random.default_rng([cell.seed, *cell.hash.encode()])
    skill = float(np.clip(skill + rng.normal(0, 0.012), 0.03, 0.97))
    loss = 1.4 - skill + float(rng.normal(0, 0.01))
    facts: dict[str, Any] = {
        "cost": Cost(trained + 40_000_000, trained, 2.0e14, 300 + trained / 2e4 + rng.normal(0, 8), 9600, 400_000),
        "loss": curve(loss, 300, rng), "validation": curve(loss + 0.05, 300, rng, every=25),
    }  # fmt: skip
    if evaluated:
        right = accuracies(skill, questions, rng)
        facts["scores"] = {
            ("unseen", "right", "accuracy"): right,
            ("unseen", "wrong", "accuracy"): accuracies(0.3, questions, rng),
            ("unseen", "none", "accuracy"): accuracies(0.27, questions, rng),
            ("captions", "right", "CIDEr"): per_item("CIDEr", list("abcdefgh"), rng.random(8) + skill, unit="number"),
        }
        if (folder / "media").is_dir():
            facts["answers"] = {"unseen": write_answers(folder / f"{cell.hash}.jsonl", right, rng)}
    return CellResult(cell, **{"state": "done" if evaluated else "trained", **facts, **more})


def write_answers(file: Path, right: Metric, rng: np.random.Generator) -> Path:
    rows = []
    for k, (unit, (value,)) in enumerate(zip(right.units, right.rows[:40])):
        colour, shape = COLOURS[k % 6], SHAPES[k % 5]
        answer = colour if value else COLOURS[int(rng.integers(6))]
        row = {"dataset": "unseen", "image": "right", "id": unit, "question": f"What color is the {shape}?"}
        row |= {"answer": answer, "reference": colour, "right": answer == colour, "media": [f"media/{k}.png"]}
        rows.append(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def draw_media(folder: Path) -> None:
    (folder / "media").mkdir(parents=True, exist_ok=True)
    for k in range(40):
        image = Image.new("RGB", (64, 64), (40, 40, 44))
        x, y = 10 + 7 * k % 30, 8 + 11 * k % 30
        pen = ImageDraw.Draw(image)
        (pen.ellipse if k % 5 == 0 else pen.rectangle)((x, y, x + 24, y + 24), fill=COLOURS[k % 6])
        image.save(folder / "media" / f"{k}.png")


BRIDGES = ("linear", "mlp", "qformer", "perceiver", "prefix + adapters", "gated cross-attention")
SKILLS = {"linear": 0.78, "mlp": 0.84, "qformer": 0.80, "perceiver": 0.71, "prefix + adapters": 0.88}
SIZES = {"linear": 1.3e5, "mlp": 4.6e5, "qformer": 2.1e6, "perceiver": 1.7e6, "prefix + adapters": 9e5}


def six_bridges(
    folder: Path, seeds: Sequence[int] = (0, 1, 2), images: bool = True, **more: Any
) -> tuple[Study, list[CellResult]]:
    """Six bridges; the last one does not look at the image."""
    if images:
        draw_media(folder)
    title = "Which bridge, from the same frozen foundations, at equal FLOPs?"
    about = "Six ways from a frozen vision encoder into a frozen language model."
    study = study_of([axis("model.bridge", BRIDGES)], seeds, folder, title=title, about=about)
    results = []
    for cell in study.cells:
        bridge = cell.levels["model.bridge"]
        results.append(result_of(cell, SKILLS.get(bridge, 0.3), folder, int(SIZES.get(bridge, 3.4e6)), **more))
    return study, results


def grid(
    axes: Sequence[Axis], skill: Callable[[Mapping[str, str]], float], folder: Path, seeds: Sequence[int] = (0, 1, 2),
    **more: Any,
) -> tuple[Study, list[CellResult]]:  # fmt: skip
    study = study_of(axes, seeds, folder, title="What matters?")
    sizes = {cell.key: 100_000 * (k + 1) for k, cell in enumerate(study.cells)}
    return study, [result_of(c, skill(c.levels), folder, sizes[c.key], **more) for c in study.cells]
