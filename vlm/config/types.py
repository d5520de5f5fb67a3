"""The objects a configuration becomes (see :mod:`vlm.config.api`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from vlm.common.bounds import BatchSize, Count, NonNegative
from vlm.config.run import RunConfig

Check = Literal["all", "needed", "weights", "none"]

KINDS: dict[str, str] = {
    **{k: k for k in ("vision", "bridge", "fusion", "inserts", "llm", "template", "image", "video", "text")},
    "inserts": "insert",
    "generation": "generation",
}
"""Keys of a composition that name parts -> the registry's kind; ``bridge`` and ``inserts`` are lists."""

UNNAMED: dict[str, str] = {"image": "recipe", "video": "recipe", "text": "default", "generation": "default"}
"""Parts whose ``name`` may be left out -> the name meant."""

COMPOSITION = (*KINDS, "train", "weights")
"""All keys of a composition."""

PARTS: dict[tuple[str | int, ...], str] = {
    ("model", key): UNNAMED.get(key, "") for key in KINDS if key not in ("bridge", "inserts")
}
"""Paths of single parts -> the name of one that has none."""


@dataclass
class Part:
    """A named part.

    ``config`` is an instance of its class's ``Config`` (None: the class has no options), ``raw`` what was written.
    """

    name: str
    config: Any
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """All options, defaults included."""
        return dataclasses.asdict(self.config) if self.config is not None else {}

    @property
    def given(self) -> dict[str, Any]:
        """The options that were written, as typed values."""
        return {key: getattr(self.config, key) for key in self.raw}

    def get(self, option: str) -> Any:
        """The value of an option, or None if the class of this part has no such option."""
        return vars(self.config).get(option) if self.config is not None else None


@dataclass
class WeightFile:
    """One file or folder of weights: its format, its path or URL, the part it goes into, whether NaN is allowed."""

    format: str
    path: str | None = None
    into: str | None = None
    allow_nonfinite: bool = False


@dataclass
class ModelConfig:
    """A composition: vision -> bridges -> fusion -> llm (with inserts), and what trains (glob -> bool, in order)."""

    bridge: list[Part]
    fusion: Part
    llm: Part
    template: Part
    image: Part
    text: Part
    generation: Part  # how this model answers; what was not written (``given``) is up to the caller
    vision: Part | None = None  # None: text only
    video: Part | None = None  # None: images only
    inserts: list[Part] = field(default_factory=list)
    train: dict[str, bool] = field(default_factory=dict)
    weights: list[WeightFile] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    arch: str | None = None
    model_type: str | None = None


@dataclass(kw_only=True)
class DatasetOptions:
    """What an entry of a dataset section may say besides its format."""

    batch_size: BatchSize = 1
    sample_ratio: NonNegative | None = None
    text_processor: dict[str, Any] = field(default_factory=dict)
    vis_processor: dict[str, Any] = field(default_factory=dict)
    type: str = "default"
    data_type: str = ""
    max_new_tokens: Count = 20
    group: str = ""


@dataclass
class EvaluationFiles:
    """An entry of ``evaluation_datasets`` that names the original files of a benchmark, in the published spelling.

    Example: ``gqa: {eval_file_path: /data/gqa/test.json, img_path: /data/gqa/images, protocol: official}``
    """

    eval_file_path: str = field(metadata={"help": "annotations: a file, a folder, or the name of a dataset on the Hub"})
    img_path: str = field(default="", metadata={"help": "folder of the images"})
    save_path: str = ""  # no effect: results are in run.save_path
    max_new_tokens: Count | None = None  # null: the benchmark's
    batch_size: BatchSize | None = None  # null: run.batch_size_eval
    benchmark: str = ""  # empty: the one with the entry's name
    options: dict[str, Any] = field(default_factory=dict)  # of the benchmark, written beside these keys


@dataclass
class DatasetEntry(DatasetOptions):
    """One dataset of a section: ``format.name`` is the registered format, ``format.config`` its build_info."""

    name: str
    format: Part


@dataclass
class Config:
    """A whole configuration.

    ``resolved`` is plain data that, stored as YAML, loads back as the same configuration without any other file.
    ``origins`` gives ``file:line`` per dotted path, ``defaults`` what the arch and corpus files say there.
    ``evaluation_files`` are the published entries of the section ``evaluation_datasets``; ``no_effect`` are written
    keys that change nothing, each with the reason.
    """

    model: ModelConfig
    datasets: dict[str, DatasetEntry] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    valid_datasets: dict[str, DatasetEntry] = field(default_factory=dict)
    evaluation_datasets: dict[str, DatasetEntry] = field(default_factory=dict)
    evaluation_files: dict[str, EvaluationFiles] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    resolved: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    no_effect: dict[str, str] = field(default_factory=dict)
