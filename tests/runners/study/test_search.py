"""Search in place of the grid: conditions, exclusions, repeats, pruning and going on; nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm.common.errors import ConfigError, UserError
from vlm.runners.study.cells import Axis, Cell, Level, StageRun, Study
from vlm.runners.study.collect import collect
from vlm.runners.study.file import Search as Settings
from vlm.runners.study.file import StudyFile
from vlm.runners.study.folder import run_folder
from vlm.runners.study.results import CellResult
from vlm.runners.study.run import run_study
from vlm.runners.study.running.child import Job
from vlm.runners.study.running.locks import FileLock
from vlm.runners.study.running.marks import Done, write_done
from vlm.runners.study.running.search import Search, Space, with_tried
from vlm.runners.study.running.source import score_of
from vlm.runners.study.running.work import Work
from vlm.tasks.scoring.statistics import per_item

pytest.importorskip("optuna")

LOSS = {"linear": 3.0, "mlp-1": 2.0, "mlp-2": 1.0, "mlp-3": 0.5}
STEPS = 4


def made(folder: Path, exclude: Sequence[Mapping[str, tuple[str, ...]]] = (), **search: object) -> tuple[Study, Space]:
    """A bridge and, for one of them, its depth; ``file.search`` has these settings."""
    axes = (
        Axis("depth", tuple(Level(d, {}) for d in "123"), when={"bridge": ("mlp",)}),
        Axis("bridge", (Level("linear", {}), Level("mlp", {}))),
    )

    def make(levels: Mapping[str, str], seed: int) -> Cell:
        name = "-".join([levels["bridge"], *([levels["depth"]] if "depth" in levels else [])])
        config = SimpleNamespace(resolved={"run": {}}, run=SimpleNamespace(best="loss"))
        return Cell(dict(levels), seed, (StageRun("train", f"{name}.{seed}", config, steps=STEPS),))  # type: ignore[arg-type]

    file = StudyFile(search=Settings(**search), seeds=[0, 1])  # type: ignore[arg-type]
    return Study(file, folder / "s.yaml", folder / "out", axes, ("train",), (), ()), Space(make, exclude)


class Fake:
    """Writes a validation after each step, and stops when it is told to."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __call__(self, job: Job, lock: FileLock, watch: Callable[[], int]) -> int:
        self.done.append(job.run)
        name, _, seed = job.run.partition(".")
        folder = run_folder(job.study, job.run)
        (folder / "checkpoints" / f"step_{STEPS:08d}").mkdir(parents=True)
        for step in range(1, STEPS + 1):
            with (folder / "log.jsonl").open("a") as log:
                log.write(
                    json.dumps({"kind": "valid", "step": step, "loss": LOSS[name] + int(seed) / 10 + 1 / step}) + "\n"
                )
            if watch():
                return 143
        write_done(job.study, job.run, Done("finished", STEPS))
        return 0


def go(study: Study, space: Space) -> tuple[list[str], int, list[str]]:
    fake, lines = Fake(), list[str]()
    ended = run_study(study, space=space, execute=fake, show=lines.append)
    return fake.done, ended.exit_code, lines


def values(folder: Path) -> list[tuple[dict[str, str], float | None, str]]:
    import optuna

    file = str(folder / "out" / "journal.log")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(file))
    (name,) = optuna.get_all_study_names(storage)
    return [
        (t.params, t.value, t.user_attrs.get("ended", ""))
        for t in optuna.load_study(study_name=name, storage=storage).trials
    ]


@pytest.mark.parametrize(
    "sampler", ["tpe", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("random", "nsgaii"))]
)
def test_every_combination_is_tried_once_and_no_trial_is_lost(tmp_path: Path, sampler: str) -> None:
    study, space = made(tmp_path, trials=10, sampler=sampler)
    done, code, lines = go(study, space)  # there are 4 combinations, so 4 trials
    assert sorted(done) == sorted(f"{name}.{seed}" for name in LOSS for seed in (0, 1)) and code == 0
    assert lines[0].endswith("8 cells, 0 done, 8 to do") and lines[-1].startswith("[8/8]")
    told = [(params, value) for params, value, ended in values(tmp_path) if ended == "done"]
    assert len(told) == 4 and ({"bridge": "linear"}, pytest.approx(-3.3)) in told  # the mean of the seeds' last losses
    assert ({"bridge": "mlp", "depth": "3"}, pytest.approx(-0.8)) in told
    found = with_tried(study, space.make)
    assert [r.state for r in collect(found)] == ["done"] * 8 and found.cells[0].levels == dict(found.cells[1].levels)
    assert go(study, space)[0] == []


def test_exclude_and_more_trials_later(tmp_path: Path) -> None:
    exclude = [{"bridge": ("mlp",), "depth": ("1", "2")}]
    study, space = made(tmp_path, exclude, trials=1, sampler="random")
    first, _, _ = go(study, space)
    study, space = made(tmp_path, exclude, trials=3, sampler="random")
    second, _, lines = go(study, space)
    assert sorted(first + second) == ["linear.0", "linear.1", "mlp-3.0", "mlp-3.1"] and "4 cells, 2 done" in lines[0]


def test_a_pruned_trial_is_shown_as_such_and_its_other_seeds_are_left_out(tmp_path: Path) -> None:
    study, space = made(tmp_path, trials=4, sampler="random", pruner="successive_halving")
    done, code, lines = go(study, space)
    states = {r.cell.hash: r.state for r in collect(with_tried(study, space.make))}
    pruned = [name for name, state in states.items() if state == "pruned"]
    assert pruned and all(name.endswith(".0") and name.replace(".0", ".1") not in done for name in pruned)
    assert code == 0 and sum("pruned after" in line for line in lines) == len(pruned)
    assert [ended for _, _, ended in values(tmp_path)].count("pruned") == len(pruned)
    assert go(study, space)[0] == []  # neither again


def test_a_combination_that_cannot_be_built_fails_alone(tmp_path: Path) -> None:
    study, space = made(tmp_path, trials=4, sampler="random")

    def make(levels: Mapping[str, str], seed: int) -> Cell:
        if levels["bridge"] == "linear":
            raise ConfigError("the widths do not fit")
        return space.make(levels, seed)

    done, code, lines = go(study, Space(make))
    assert code == 1 and any("linear: cannot be built: the widths do not fit" in line for line in lines)
    assert set(done) <= {f"mlp-{d}.{s}" for d in "123" for s in (0, 1)}


def test_a_search_over_another_base_begins_anew(tmp_path: Path) -> None:
    study, space = made(tmp_path, trials=1)
    work = Work(study, (), Fake())
    names = {Search(work, replace(space, of=of)).name for of in ("", "1f", "2e", "1f")}
    assert len(names) == 3


def test_a_score_that_no_cell_has_is_told_and_not_taken_for_the_loss(tmp_path: Path) -> None:
    study, space = made(tmp_path, trials=1)
    cell = space.make({"bridge": "linear"}, 0)
    result = CellResult(
        cell, "done", scores={("seen", "right", "accuracy"): per_item("accuracy", ["1", "2"], [1.0, 0.0])}
    )
    named = [replace(study, file=replace(study.file, score=score)) for score in ("", "seen/acuracy", "loss")]
    assert score_of(named[0], result) == 0.5
    with pytest.raises(ConfigError, match="unknown score 'seen/acuracy'; did you mean 'seen/accuracy'"):
        score_of(named[1], result)
    assert score_of(named[2], result) is None


def test_only_is_for_grids(tmp_path: Path) -> None:
    study, space = made(tmp_path, trials=1)
    with pytest.raises(UserError, match="--only names cells of a grid"):
        run_study(study, space=space, only=["linear"], execute=Fake())
