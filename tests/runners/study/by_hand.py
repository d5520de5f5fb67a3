"""Studies made by hand: cells of the small published composition, whose configurations differ in a few keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.config.api import load_config
from vlm.config.tree import to_yaml
from vlm.runners.study.cells import Axis, Cell, Level, StageRun, Study
from vlm.runners.study.file import Cluster, Evaluation, Stage, StudyFile
from vlm.runners.study.folder import run_folder

TESTS = Path(__file__).resolve().parents[2]
DATA = TESTS / "golden" / "minigpt4" / "open"
BASE = (TESTS / "equivalence" / "tiny.yaml").read_text().replace("DATA", str(DATA))
WEIGHTS = (
    f"{{format: eva, path: {DATA}/eva_vit_g.pth, into: vision}}, {{format: hf_llm, path: {DATA}/llm, into: llm}}, "
    f"{{format: blip2_qformer, path: {DATA}/blip2_pretrained_flant5xxl.pth, into: bridge.0}}"
)
SMALL = ["run.max_steps=3", "run.iters_per_epoch=3", "run.trackers=[jsonl]", "run.report=false", "run.num_workers=0"]
"""Three steps, with a checkpoint after each epoch of one."""


def stage_run(folder: Path, stage: str, options: Sequence[str], after: StageRun | None = None) -> StageRun:
    """A run of the small composition, named by a hash of what it is asked to do."""
    file = folder.parent / "base.yaml"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(BASE)
    text = "\n".join([stage, *options, after.hash if after else ""])
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    more = [f"run.output_dir={run_folder(folder, name)}"]
    more += [f"model.weights=[{WEIGHTS}, {{format: trained, path: {run_folder(folder, after.hash)}}}]"] if after else []
    config = load_config(file, [*SMALL, *options, *more], check="none")
    return StageRun(stage, name, config, after.hash if after else None, None, config.run.total_steps)


def study_of(
    folder: Path,
    levels: Mapping[str, Sequence[str]],
    seeds: Sequence[int] = (0,),
    first: Sequence[str] | None = None,
    evaluate: Evaluation | None = None,
    **settings: Any,
) -> Study:
    """A study with one axis.

    Args:
        folder: of the study.
        levels: label -> options of the last stage.
        seeds: of every cell.
        first: options of a first stage that all cells of a seed share; None: there is none.
        evaluate: what is asked.
        settings: of the file.
    """
    cells = []
    for label, options in levels.items():
        for seed in seeds:
            seeded = [f"run.seed={seed}"]
            before = [] if first is None else [stage_run(folder, "first", [*first, *seeded])]
            last = stage_run(folder, "last", [*options, *seeded], before[0] if before else None)
            cells.append(Cell({"axis": label}, seed, (*before, last)))
    axis = Axis("axis", tuple(Level(label, {}) for label in levels))
    file = StudyFile(base=str(folder.parent / "base.yaml"), seeds=list(seeds), evaluate=evaluate, **settings)
    stages = ("last",) if first is None else ("first", "last")
    return Study(
        file, folder.parent / "study.yaml", folder, (axis,), stages, tuple(cells), (("axis", next(iter(levels))),)
    )


__all__ = ["Cluster", "Stage", "stage_run", "study_of", "to_yaml"]
