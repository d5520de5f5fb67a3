"""What a study file says: every key of ``study.yaml``, typed, with its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vlm.common.bounds import Count, Natural, Once, Range, Seed
from vlm.config.run import option

Levels = list[Any] | dict[str, Any]
Where = dict[str, Any]
"""Axis -> the label of one of its values, or a list of labels."""


@dataclass
class Budget:
    """How long a stage trains, the same for all cells; its steps are derived for each. Exactly one of these is given.

    Example: ``budget: {flops: 2e14}``
    """

    steps: Count | None = option(None, "optimiser steps")
    samples: Count | None = option(None, "training samples")
    tokens: Count | None = option(None, "positions of the LLM's input, padding left out")
    flops: Annotated[float, Range(above=0)] | Literal["reference"] | None = option(
        None, "floating-point operations of all processes; reference: as many as the reference cell's file asks for"
    )


@dataclass
class Stage:
    """One run of every cell, over a run file."""

    base: str = field(metadata={"help": "run file, beside the study, or system/name of what ships"})
    set: dict[str, Any] = option({}, "dotted key: value, the same for all cells")
    after: str | None = option(None, "the stage whose run this one starts from; null: the one before in the file")
    into: str = option(
        "model.ckpt", "key that takes the run folder of the stage before; model.weights: one more entry of it"
    )
    budget: Budget | None = option(None, "length of the stage; null: as its file says")


@dataclass
class Evaluation:
    """What is asked of every cell once it is trained; see the section ``evaluation_datasets`` of run files."""

    base: str | None = option(None, "file whose evaluation_datasets and run.task are taken")
    datasets: dict[str, Any] = option({}, "entries of evaluation_datasets, added to those of base")
    task: str | None = option(None, "benchmark of entries that name none; null: that of base, else question_answering")
    images: Annotated[list[Literal["right", "wrong", "none", "blank"]], Once()] = option(
        ["right", "wrong", "none"], "image controls; blank: a grey image"
    )
    limit: Natural = option(0, "questions of each dataset, the same ones for all cells; 0: all")


@dataclass
class Search:
    """Trials of Optuna in place of the full grid."""

    trials: Count = field(metadata={"help": "cells that are tried, in all"})
    sampler: Literal["tpe", "random", "nsgaii"] = option("tpe", "sampler of Optuna that chooses the next cell")
    pruner: Literal["none", "median", "hyperband", "successive_halving"] = option(
        "none", "ends trials that are bad by the validation loss, or the metric of run.best, while they train"
    )
    seed: Seed = option(0, "of the sampler")


@dataclass
class Cluster:
    """Jobs of Slurm, sent by submitit; each is one worker."""

    jobs: Count = option(1, "workers")
    hours: Annotated[float, Range(above=0)] = option(24.0, "time limit of a job; a study goes on with the next one")
    options: dict[str, Any] = option(
        {}, "options of submitit's executor, e.g. {slurm_partition: gpu, gpus_per_node: 8}"
    )


@dataclass
class StudyFile:
    """A study. Either ``base``, for one stage, or ``stages``.

    Example::

        base: tiny/stage1_pretrain
        axes:
          model.bridge: [linear, {name: mlp, depth: 2}]
        seeds: [0, 1, 2]
    """

    title: str = option("", "what the study asks, in one line")
    about: str = option("", "more lines, for the report")
    base: str | None = option(None, "run file of the only stage")
    set: dict[str, Any] = option({}, "dotted key: value, the same for all cells and stages")
    budget: Budget | None = option(None, "length of every stage that has none of its own; null: as its file says")
    stages: dict[str, Stage] = option({}, "name: stage, in the order of training")
    axes: dict[str, Levels] = option(
        {},
        "dotted key (with STAGE. before it for one stage only): its values; or a name: {label: {dotted key: value}}, "
        "where a value sets several keys",
    )
    when: dict[str, Where] = option({}, "axis: {other axis: label or labels}; elsewhere the axis is not there")
    exclude: list[Where] = option([], "combinations that are left out, {axis: label or labels}")
    design: Literal["grid", "one_at_a_time"] = option(
        "grid",
        "grid: every combination; one_at_a_time: the reference, and what differs from it in one axis, as in the "
        "ablation tables of papers",
    )
    seeds: Annotated[list[Seed], Once()] = option([0], "run.seed of the runs of every combination")
    reference: Where = option(
        {}, "axis: label of the cell that others are compared with; axes left out: the first value"
    )
    evaluate: Evaluation | None = option(None, "what is asked after training; null: only losses are compared")
    score: str = option(
        "", "DATASET/METRIC the table is ordered by; empty: the first dataset's first metric, else loss"
    )
    search: Search | None = option(None, "null: every combination is run")
    processes: Count = option(1, "processes of every run, on one machine (torchrun)")
    cluster: Cluster = field(
        default_factory=Cluster, metadata={"help": "where `vlm study run my.yaml --submit` sends its workers"}
    )
    output: str = option("", "folder of the study; empty: output/studies/NAME of the file")
    plugins: list[str] = option([], "modules to import first, as in run files")
