"""What a study asks of every cell after training: one dataset with one image control at a time.

So whatever is added to a study is asked alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import ConfigError, UserError
from vlm.config.schema import ConfigProblems, Problem
from vlm.runners.study.folder import evaluation_folder, run_folder

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.runners.study.cells import Study

NAME = "evaluation"
"""Of the result files in each folder."""
TAKEN = ("task", "benchmark", "batch_size_eval", "max_new_tokens", "max_bad_share")
"""Keys of the section run that change what is asked, taken from the file that ``evaluate.base`` names."""
HASH = 12
"""Hex digits of a hash, as those of runs."""


@dataclass(frozen=True)
class Asking:
    """One dataset with one image control.

    Attributes:
        dataset: name of the entry.
        entry: of ``evaluation_datasets``, as written.
        image: control.
        limit: questions; 0: all.
        run: keys of the section ``run``.
    """

    dataset: str
    entry: dict[str, Any]
    image: str
    limit: int = 0
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Of everything that is asked; name of the result folder."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:HASH]

    def folder(self, study: Path, run: str) -> Path:
        """Where the results of a run are."""
        return evaluation_folder(study, run, self.hash)

    def answered(self, study: Path, run: str) -> bool:
        """Whether the results of a run are there as a whole: their summary is written last."""
        return (self.folder(study, run) / f"{NAME}.json").is_file()


def asked_of(study: Study) -> list[Asking]:
    """What the study asks, in the order of the file.

    Raises ConfigError: no such file, or nothing is asked.
    """
    evaluate = study.file.evaluate
    if evaluate is None:
        return []
    base = _base(study.source, evaluate.base) if evaluate.base else {}
    entries = {**(base.get("evaluation_datasets") or {}), **evaluate.datasets}
    given = base.get("run") or {}
    run = {key: given[key] for key in TAKEN if key in given}
    run |= {"task": evaluate.task} if evaluate.task else {}
    if not entries:
        raise ConfigError(
            f"{study.source}: evaluate asks nothing", fix="name a base with evaluation_datasets, or datasets"
        )
    return [
        Asking(name, {} if entry is None else entry, image, evaluate.limit, run)
        for name, entry in entries.items()
        for image in evaluate.images
    ]


def _base(source: Path, name: str) -> dict[str, Any]:
    """The sections of a run file beside the study, or of one that ships."""
    from vlm.config.load import read_source
    from vlm.config.renamed import rename_keys

    beside = source.parent / name
    tree, _ = read_source(beside if beside.is_file() else name)
    rename_keys(tree)
    return tree.data


def faults_of(study: Study, trained: Config) -> list[Problem]:
    """What is wrong with ``evaluate``, ``score`` and ``search.pruner``, found before anything is trained.

    Args:
        study: whose section is meant.
        trained: configuration of one of its cells, whose run need not be there.
    """
    from vlm.runners.evaluate.run import asked_of as opened

    try:
        asked = asked_of(study)
    except UserError as error:
        return [Problem("evaluate", "", str(error))]
    problems, search = [], study.file.search
    if search is not None and search.pruner != "none" and trained.run.best == "loss" and not trained.valid_datasets:
        problems.append(Problem("search.pruner", "", "it sees validation losses, but the base has no valid_datasets"))
    if study.file.evaluate is not None and not asked:
        problems.append(Problem("evaluate.images", "", "found [], expected image controls, e.g. [right, none]"))
    for name, asking in {asking.dataset: asking for asking in asked}.items():
        try:
            opened(config_for(trained, asking), name, {})
        except ConfigProblems as error:
            places = [p.path.replace("evaluation_datasets", "evaluate.datasets", 1) for p in error.problems]
            found = [Problem(at, p.where, p.message) for at, p in zip(places, error.problems, strict=True)]
            problems += [problem for problem in found if problem not in problems]
        except UserError as error:
            problems.append(Problem("evaluate.datasets", "", str(error)))
    return problems + _score_faults(study.file.score, asked)


def _score_faults(score: str, asked: Sequence[Asking]) -> list[Problem]:
    """That ``score`` is of a dataset that is not asked with its right images; metrics are known once one was."""
    names = list(dict.fromkeys(asking.dataset for asking in asked if asking.image == "right"))
    if score in ("", "loss") or any(score.startswith(f"{name}/") for name in names):
        return []
    allowed = ", ".join(["loss", *(f"{name}/METRIC" for name in names)])
    return [Problem("score", "", f"found {score!r:.100}, which nothing asks for (allowed: {allowed})")]


def missing(study: Path, run: str, asked: Sequence[Asking]) -> list[Asking]:
    """Those whose results are not there."""
    return [asking for asking in asked if not asking.answered(study, run)]


def ask_all(study: Path, run: str, asked: Sequence[Asking], show: Callable[[str], None]) -> None:
    """Ask a trained run what is missing; the model is loaded once.

    Raises UserError: data or a model that cannot be used.
    """
    from vlm.inference.engine import Engine
    from vlm.inference.load import read_source
    from vlm.runners.evaluate.run import run_evaluation

    todo = missing(study, run, asked)
    if not todo:
        return
    trained = read_source(run_folder(study, run))
    engine = Engine.load(trained)
    for asking in todo:
        run_evaluation(
            config_for(trained, asking),
            engine=engine,
            datasets=[asking.dataset],
            images=[asking.image],
            output=asking.folder(study, run),
            limit=asking.limit,
            command=["vlm", "study", "run"],
            show=show,
        )


def config_for(trained: Config, asking: Asking) -> Config:
    """The configuration of a run with one entry of ``evaluation_datasets``. Raises ConfigError: the entry is wrong."""
    from vlm.config.api import load_config

    tree = {
        "model": {**trained.resolved["model"], "weights": []},
        "evaluation_datasets": {asking.dataset: asking.entry},
        "run": {**asking.run, "name": NAME},
        "plugins": trained.plugins,
    }
    cfg = load_config(tree, check="all", trust=True)
    cfg.model = trained.model
    cfg.run = dataclasses.replace(cfg.run, device=trained.run.device, seed=trained.run.seed)
    return cfg
