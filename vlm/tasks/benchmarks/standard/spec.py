"""What the YAML of a standard benchmark says: where it comes from, its files, and its protocols."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlm.common.bounds import Count
from vlm.common.errors import ConfigError, unknown
from vlm.config.schema import Report, read
from vlm.config.tree import parse_file

NAMES = ("official", "lmms", "published")
"""``official``: the benchmark's own script; ``lmms``: the rule of lmms-eval; ``published``: the script of a system."""


@dataclass(frozen=True)
class Protocol:
    """How questions are asked and answers scored. Functions are named; see :class:`.base.StandardBenchmark`."""

    about: str  # in a sentence: whose rule it is, and what is particular
    prompt: str = "{question}"  # with {fields} of the item; {question} and {options} exist for all
    prompt_of: str = ""  # instead of prompt: function(item) -> text
    answer: str = "stripped"  # function(output, item) -> what is scored, or None: nothing can be read from it
    metrics: list[str] = field(default_factory=list)  # functions(items, answers) -> Metric or list of them
    primary: str = ""  # label of the metric that stands for all; empty: the first
    right: str = ""  # function(items, answers) -> share of each item; empty: the rows of the primary metric
    max_new_tokens: Count | None = None  # null: the benchmark's
    choose: Literal["generate", "likelihood"] = "generate"  # what an entry that does not say gets
    compare: Literal["letters", "texts", "whole texts", "published"] = "letters"  # see tasks/likelihood.py


@dataclass(frozen=True)
class Stored:
    """Fields that name the question and the answer in result files of the benchmark's own form."""

    id: list[str] = field(default_factory=lambda: ["question_id", "id"])
    text: list[str] = field(default_factory=lambda: ["answer"])
    read: str = ""  # function(JSON data, items) -> id: text, or None: not of the benchmark's form, read it as any other


@dataclass(frozen=True)
class Spec:
    """One benchmark."""

    title: str
    about: str  # what it measures, in a sentence
    source: str  # paper or page
    files: list[str]  # files under eval_file_path as they are published, {split} included
    media: str  # what img_path is
    protocols: dict[str, Any]
    task: Literal["vqa", "choice", "yes_no", "caption", "boxes", "open"] = "vqa"
    splits: list[str] = field(default_factory=list)  # the first one is the default
    max_new_tokens: Count = 20
    answers: Stored = field(default_factory=Stored)
    submission: str = ""  # function(items, outputs) -> (name of file, text), or a mapping; for a server or a judge
    unscored: bool = False  # others judge the answers; there is no score here
    default: str = ""  # protocol of an entry that names none; empty: official

    def protocol(self, name: str) -> Protocol:
        """Raises ConfigError: no such protocol."""
        name = name or self.default or next(iter(self.protocols))
        if name not in self.protocols:
            raise ConfigError(unknown(f"protocol of {self.title}", name, list(self.protocols)))
        found: Protocol = self.protocols[name]
        return found


def read_spec(file: Path) -> Spec:
    """The YAML file of a benchmark. Raises ConfigError: a key or value that does not fit."""
    tree = parse_file(file, file.name)
    report = Report(origins={})
    spec = read(Spec, tree.data, (), report)
    protocols = {
        name: read(Protocol, data, ("protocols", name), report)
        for name, data in (tree.data.get("protocols") or {}).items()
    }
    for name in protocols:
        if name not in NAMES:
            report.unknown(("protocols", name), list(NAMES))
    report.raise_if_any(f"benchmark {file.name}")
    return dataclasses.replace(spec, protocols=protocols)
