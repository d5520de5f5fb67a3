"""Reads a study: :func:`read_study` what the file says, :func:`build_study` its cells as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlm.common.trust import trusting
from vlm.config.types import Check
from vlm.runners.study.cells import Study
from vlm.runners.study.file import StudyFile
from vlm.runners.study.grid.budget import Measurer
from vlm.runners.study.grid.build import Builder
from vlm.runners.study.grid.opened import open_file, study_folder
from vlm.runners.study.running.search import with_tried


def read_study(path: str | Path, options: Sequence[str] = (), *, trust: bool = False) -> StudyFile:
    """What a study file says, checked by itself; the files that it names are not opened.

    Args:
        path: of the file.
        options: ``--options``, over the study file: ``seeds=[0,1] budget.flops=1e12 axes.run.init_lr=[1e-3]``.
        trust: whether it may import modules; ``vlm study run`` trusts the file that it is given.

    Raises:
        ConfigError: all problems, each with file:line, what was found and what is allowed.
    """
    return open_file(path, options, trust=trust).file


def build_study(
    path: str | Path,
    options: Sequence[str] = (),
    *,
    check: Check = "weights",
    plan: bool = False,
    trust: bool = False,
) -> Study:
    """A study with all its cells, each of them checked; of a search, those that were tried.

    Args:
        path: of the file.
        options: see :func:`read_study`.
        check: which files must exist, see :func:`vlm.config.load.load_config`; a run of an earlier stage counts as
            there.
        plan: whether steps are derived from budgets, and models compared with their weight files. Without it, the
            configuration of a run whose budget is not in steps says nothing about its length; its hash is the same.
        trust: see :func:`read_study`.

    Raises:
        ConfigError: all problems of the file and of all cells.
    """
    with trusting(trust):
        read = open_file(path, options, trust=trust)
        measurer = Measurer(read.file.processes, folder=study_folder(read)) if plan else None
        builder = Builder(read, check, measurer, fits=plan)
        return with_tried(builder.study(), builder.cell) if read.file.search else builder.study()
