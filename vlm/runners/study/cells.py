"""The cells of a study: what each of them is, and the runs that it consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.runners.study.file import Budget, StudyFile


@dataclass(frozen=True)
class Level:
    """One value of an axis.

    Attributes:
        label: unique on its axis, as it is written in ``when``, ``exclude`` and tables.
        sets: dotted key, after STAGE. if only that stage takes it, -> value.
    """

    label: str
    sets: Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """Something that varies.

    Attributes:
        name: as in the file.
        levels: its values, in the order of the file.
        stage: the only stage that it changes; None: all.
        when: other axis -> labels for which this axis is there; empty: always.
    """

    name: str
    levels: tuple[Level, ...]
    stage: str | None = None
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRun:
    """One run: a stage with everything that is decided for it. Cells that agree on it share it.

    Attributes:
        stage: name of the stage.
        hash: 12 hex digits of the resolved configuration (output folder left out, the run before by its own hash);
            name of the run folder under ``runs/``.
        config: checked, with ``run.output_dir``, steps and the path of the run before set.
        after: hash of the run that it starts from; None: of none.
        budget: what its steps were derived from; None: the file's own length.
        steps: of the whole run; None: not known before the data is read.
    """

    stage: str
    hash: str
    config: Config
    after: str | None = None
    budget: Budget | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Cell:
    """One combination of levels with one seed.

    Attributes:
        levels: axis -> label; axes that are not there (``when``) are left out.
        seed: ``run.seed`` of its runs.
        runs: one for each stage, in the order of training; the last one is the cell's model.
    """

    levels: Mapping[str, str]
    seed: int
    runs: tuple[StageRun, ...]

    @property
    def hash(self) -> str:
        """Of its last run, which is the cell's name."""
        return self.runs[-1].hash

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """What all seeds of a combination share."""
        return tuple(self.levels.items())


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        file: what was written.
        source: the file's path.
        folder: where everything is kept, see :mod:`vlm.runners.study.folder`.
        axes: in the order of the file.
        stages: names in the order of training.
        cells: all of them, seeds of a combination one after another; empty with ``search``.
        reference: key of the combination that others are compared with.
    """

    file: StudyFile
    source: Path
    folder: Path
    axes: tuple[Axis, ...]
    stages: tuple[str, ...]
    cells: tuple[Cell, ...]
    reference: tuple[tuple[str, str], ...]

    def named(self, key: tuple[tuple[str, str], ...]) -> str:
        """A combination in a few words: its labels, joined by commas.

        With ``design: one_at_a_time`` only what differs from the reference, which is called so itself.
        """
        if self.file.design == "one_at_a_time":
            usual = dict(self.reference)
            labels = [level.label for axis in self.axes for level in axis.levels]
            own = [(axis, label) for axis, label in key if usual.get(axis) != label]
            words = [label if labels.count(label) == 1 else f"{axis}: {label}" for axis, label in own]
            return ", ".join(words) or "reference"
        return ", ".join(label for _, label in key) or "base"
