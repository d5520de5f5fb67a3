"""The objects a configuration becomes (see :mod:`vlm.config.api`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vlm.config.run import RunConfig

Check = Literal["all", "needed", "weights", "none"]


@dataclass
class Part:
    """A named part: ``config`` is an instance of its class's ``Config``, ``raw`` what was written."""

    name: str
    config: Any
    raw: dict[str, Any] = field(default_factory=dict)


@dataclass
class WeightFile:
    """One file or folder of weights: its format, where it lies (path or URL), the part it goes into."""

    format: str
    path: str | None = None
    into: str | None = None


@dataclass
class ModelConfig:
    """A composition: vision -> bridges -> fusion -> llm (with inserts), and what trains (glob -> bool, in order)."""

    vision: Part | None
    bridge: list[Part]
    fusion: Part
    llm: Part
    template: Part
    inserts: list[Part] = field(default_factory=list)
    image: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] | None = None  # None: images only
    text: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)  # options of an answer that this model answers with
    train: dict[str, bool] = field(default_factory=dict)
    weights: list[WeightFile] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    arch: str | None = None
    model_type: str | None = None


@dataclass
class DatasetEntry:
    """One dataset of a section: ``format.name`` is the registered format, ``format.config`` its build_info."""

    name: str
    format: Part
    batch_size: int = 1
    sample_ratio: float | None = None
    text_processor: dict[str, Any] = field(default_factory=dict)
    vis_processor: dict[str, Any] = field(default_factory=dict)
    type: str = "default"
    data_type: str = "images"
    max_new_tokens: int = 20
    group: str = ""


@dataclass
class Config:
    """A whole configuration.

    ``resolved`` is plain data that, stored as YAML, loads back as the same configuration without any other file.
    ``origins`` gives ``file:line`` per dotted path, ``defaults`` what the arch and corpus files say there.
    """

    model: ModelConfig
    datasets: dict[str, DatasetEntry] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    valid_datasets: dict[str, DatasetEntry] = field(default_factory=dict)
    evaluation_datasets: dict[str, DatasetEntry] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    resolved: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
