"""What is known of the files that the compositions of a system read: ``vlm/systems/<system>/facts/weights.yaml``.

The YAML file is a list of :class:`FileFacts` under the key ``files``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from vlm.common.bounds import Range
from vlm.common.paths import SYSTEMS
from vlm.config.schema import Report, read
from vlm.config.shipped import archs, label
from vlm.config.tree import parse_file

FILE = Path("facts") / "weights.yaml"


@dataclass(kw_only=True)
class FileFacts:
    """One file or folder that a parameter of a composition names."""

    param: str  # the parameter, e.g. llama_model
    what: str  # what has to be there
    compositions: list[str] = field(default_factory=list)  # model_types with these facts; empty: all of the system
    size_gb: Annotated[float, Range(above=0)] | None = None  # of the published files, in 10^9 bytes; null: not known
    licence: str = ""  # of the published files; empty: see where they come from
    repository: str = ""  # on the Hugging Face Hub, whose cache is searched for it
    file: str = ""  # the one file of the repository; empty: all of it
    commands: list[str] = field(default_factory=list)  # what makes or fetches it, in order; {to} is where it goes
    instead: list[str] = field(default_factory=list)  # another way
    page: str = ""  # where else it comes from
    place: str = ""  # where the commands put it; empty: weights/ and the name of the file, repository or parameter
    optional: bool = False  # an empty parameter means that this part starts from random weights, to be trained

    def __post_init__(self) -> None:
        """Raises ValueError: ``file`` without ``repository``, or nothing that says where it comes from."""
        if self.file and not self.repository:
            raise ValueError("file is one of a repository; set repository too")
        if not (self.commands or self.page):
            raise ValueError("neither commands nor page says where it comes from")

    @property
    def target(self) -> str:
        """Where the commands put it, unless the parameter names a place."""
        return self.place or f"weights/{Path(self.file or self.repository or self.param).name}"


@dataclass(kw_only=True)
class _Listed:
    files: list[FileFacts]


def facts_file(system: str) -> Path:
    """The file of a system, which may not be there."""
    return SYSTEMS / system / FILE


def read_facts(system: str) -> list[FileFacts]:
    """All facts of a system; none if it has no such file. Raises ConfigError: an unknown key or unusable value."""
    file = facts_file(system)
    if not file.is_file():
        return []
    tree = parse_file(file, label(file))
    report = Report(tree.origins)
    listed = read(_Listed, tree.data, (), report)
    known = {name.split("/")[1] for name in archs() if name.startswith(f"{system}/")}
    for index, facts in enumerate(listed.files if listed else []):
        for name in facts.compositions if facts else ():
            if name not in known:
                report.unknown(("files", index, "compositions"), sorted(known), "composition", name)
    report.raise_if_any(label(file))
    assert listed is not None
    return listed.files


def facts_of(composition: str) -> dict[str, FileFacts]:
    """Parameter -> facts of a composition ``system/model_type``; raises as :func:`read_facts`."""
    system, _, model_type = composition.partition("/")
    return {f.param: f for f in read_facts(system) if not f.compositions or model_type in f.compositions}
