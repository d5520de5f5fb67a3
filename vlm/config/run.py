"""The ``run`` section: every published key and ours, typed, with defaults and one line of help each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from vlm.common.bounds import (
    BatchSize,
    Count,
    Device,
    Dropout,
    Natural,
    NonNegative,
    Once,
    Positive,
    Range,
    Seed,
    Share,
)

Decay = Annotated[float, Range(above=0, most=1)]
Names = Annotated[list[str], Once()]


def option(default: Any, about: str, **metadata: Any) -> Any:
    """A dataclass field with a default and its help text."""
    metadata["help"] = about
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def no_effect(default: Any, why: str) -> Any:
    """An :func:`option` that is accepted so that published files run, and why it changes nothing here."""
    return option(default, why, no_effect=True)


@dataclass
class Packing:
    """Several samples in one row, kept apart by ``Batch.segments``; a sample must fit into a row by itself."""

    max_tokens: Count = field(metadata={"help": "positions of a row, visual tokens included"})
    max_media: Count | None = option(None, "images and videos of a row; null: no limit")
    open_rows: Count = option(
        32,
        "rows that are filled at the same time; more waste less and hold more images in memory (with global_batch all "
        "rows of a step are)",
    )


@dataclass(frozen=True)
class Serving:
    """Limits and switches of an engine. They change speed and memory; an answer no more than rounding does.

    Example: ``vlm serve output/mine --options run.serving.max_batch=16 run.serving.lookup=8``
    """

    max_batch: Count = option(32, "answers written at the same time")
    queue: Natural = option(1024, "questions that wait at most; further ones are refused (0: no limit)")
    prefill: Count = option(512, "prompt positions read in one step, so that a long prompt does not stall the others")
    block: Count = option(64, "positions read together and kept together in the prefix cache")
    kv_mib: Natural | None = option(
        None, "MiB for keys and values of the answers being written; null: a quarter of the free memory, 0: no limit"
    )
    prefix_mib: Natural = option(1024, "MiB for keys and values of prompts that may come again (0: off)")
    feature_mib: Natural = option(512, "MiB for visual features of recent images (0: off)")
    lookup: Natural = option(0, "tokens of a greedy answer guessed at a time from what was read and written (0: off)")
    compile: bool = option(False, "torch.compile the decoder's layers (slower on a CPU where it was measured)")


@dataclass
class TrainingEvaluation:
    """An entry of ``evaluation_datasets`` that is asked while a run trains.

    Example: ``run.eval: [{dataset: vqa, every: 500, limit: 200, images: [right, none]}]``
    """

    dataset: str = field(metadata={"help": "name of the entry"})
    every: Natural = option(0, "steps between evaluations; 0: at epoch ends. The last step always has one")
    limit: Natural = option(200, "questions, drawn with run.seed and the same each time; 0: all")
    images: Names = option(["right"], "image controls: right, wrong, none, blank")


@dataclass
class Parallel:
    """How a model is spread over processes. None of it changes what a run computes, but for the order of sums.

    Example: ``torchrun --nproc-per-node 8 -m vlm.cli train mine.yaml --options run.parallel.shard=llm``
    """

    shard: Literal["none", "llm", "all"] = option(
        "none", "none: every process has a copy; llm: the LLM's layers and all that trains are split; all: every part"
    )
    replicate: Count = option(1, "groups of processes that each hold the whole model in shards; divides their number")
    offload: Literal["none", "cpu"] = option("none", "cpu: shards wait in host memory (accelerators only)")
    frozen: Literal["auto", "shard", "replicate"] = option(
        "auto", "frozen parts beside the LLM; auto: copied where they fit, since shards are gathered at each use"
    )


@dataclass
class FeatureCaching:
    """Outputs of the frozen visual parts, kept on disk from the first epoch on; see the guide "Feature cache"."""

    dir: str = field(metadata={"help": "folder of the cache; several runs with the same parts may share it"})
    max_gb: Annotated[float, Range(above=0)] = option(50.0, "size at which nothing more is written")
    dtype: Literal["fp32", "bf16", "fp16", "auto"] = option("auto", "of stored features; auto: as they are computed")


@dataclass
class SpikeLimits:
    """When a step is a spike: loss or gradient norm far above the median of the steps before."""

    window: Annotated[int, Range(8, 100_000)] = option(200, "steps that are looked back on")
    deviations: Annotated[float, Range(above=0)] = option(
        8.0, "robust standard deviations above their median (of the gradient norm: of its logarithm)"
    )
    most_skipped: Count = option(10, "with on_spike: skip, skipped steps in a row after which the run stops")


@dataclass
class Profiling:
    """A trace of some steps, and a table of the ten dearest operations, in the run folder under ``profile/``."""

    first: Count = option(5, "first step that is recorded; those before warm up")
    steps: Annotated[int, Range(1, 100)] = option(3, "steps that are recorded")


@dataclass
class RunConfig:
    """How a run trains or evaluates. Published spelling where one exists."""

    task: str = option("image_text_pretrain", "registered task (training) or benchmark (vlm eval)")
    benchmark: dict[str, Any] = option({}, "options of the benchmark that task names, e.g. {judge: open}")
    runner: str = option("runner_base", "registered runner")

    lr_sched: str = option(
        "cosine", "registered schedule, e.g. cosine, linear, step, constant, linear_warmup_cosine_lr"
    )
    init_lr: NonNegative = option(1e-4, "peak learning rate")
    min_lr: NonNegative = option(0.0, "learning rate at the end")
    warmup_lr: float = option(-1.0, "learning rate at step 0; negative: 0, in the published schedules init_lr")
    warmup_steps: Natural = option(0, "global steps of warm-up")
    warmup_restarts: bool = option(False, "reproduce the published fault: warm-up counts from each epoch's start")
    lr_decay_rate: Decay = option(0.9, "factor per epoch of the step schedule")
    weight_decay: NonNegative = option(0.05, "AdamW decay of matrices; vectors and biases have none")
    weight_decay_on: list[str] = option(["*"], "globs of parameter names whose matrices decay")
    lr_scale: dict[str, Positive] = option(
        {}, "glob of parameter names: factor of their learning rate; the last one that fits counts"
    )
    beta2: Dropout = option(0.999, "AdamW second beta")
    optimizer: str = option("adamw", "registered optimizer: adamw, adamw_8bit (states in 8 bits)")
    max_epoch: Count = option(1, "epochs of iters_per_epoch steps")
    iters_per_epoch: Count | None = option(
        None, "steps per epoch; null: one pass over the data, if its length is known"
    )
    max_steps: Count | None = option(None, "steps in all; null: max_epoch x iters_per_epoch")
    accum_grad_iters: Count = option(1, "micro-batches per step; the mean is over tokens")
    global_batch: BatchSize | None = option(
        None,
        "samples of a step over all processes: the same ones whatever the number of processes and the size of "
        "micro-batches, as many of which are taken as needed; null: accum_grad_iters micro-batches per process",
    )
    max_grad_norm: NonNegative = option(0.0, "clip the gradient norm to this; 0: off")
    on_spike: Literal["warn", "skip", "stop"] = option("warn", "what to do about a step whose loss jumps")
    spike: SpikeLimits = field(default_factory=SpikeLimits, metadata={"help": "when a step is a spike"})
    stall_seconds: Natural = option(1800, "report a step that takes longer, with process and samples; 0: never")

    device: Device = option("auto", "where the run computes; auto: the accelerator if there is one")
    amp: bool = option(False, "mixed precision")
    amp_dtype: Literal["auto", "bf16", "fp16"] = option("auto", "auto: bf16 where the device has it, else fp16")
    activation_checkpointing: Literal["none", "torch", "fairscale", "fairscale_offload"] = option(
        "none", "recompute activations in the backward pass; fairscale_offload keeps the inputs on the CPU"
    )
    find_unused_parameters: bool = option(False, "DDP: allow parameters without gradient")
    broadcast_buffers: bool = option(False, "DDP: copy buffers from rank 0 at each step")
    compile: bool = option(False, "torch.compile the repeated blocks of the model")
    parallel: Parallel = field(default_factory=Parallel, metadata={"help": "how the model is spread over processes"})
    feature_cache: FeatureCaching | None = option(None, "keep what the frozen visual parts compute; null: off")
    profile: Profiling | None = option(None, "record some steps; null: off")
    deterministic: bool = option(False, "deterministic kernels, slower")
    num_workers: Annotated[int, Range(0, 1024)] = option(4, "loader processes per rank")
    max_bad_share: Share = option(
        0.01, "share of samples that may be unusable before the run stops; see quarantine.jsonl"
    )
    max_cut_share: Share | None = option(
        None,
        "share of a dataset's samples that may be cut before the run stops; null: no bound where model.text states a "
        "limit, 0.1 where the LLM's context is the limit",
    )
    mixing: Literal["batch", "sample", "joint"] = option(
        "batch",
        "batch: each micro-batch (with global_batch: each step) draws one dataset, with its batch_size; "
        "sample: each sample draws its dataset; joint: each micro-step has a batch of every datasets.NAME.group "
        "(with global_batch: each step has as many samples of every group)",
    )
    loss_reduction: Literal["tokens", "groups", "batches"] = option(
        "tokens",
        "the loss of a step: mean over its tokens; sum of the means over each group's tokens (mixing: joint); "
        "or of the means of each group's micro-batches (published by Multimodal-GPT)",
    )
    batch_size: BatchSize | None = option(
        None,
        "with mixing: sample, joint or packing, samples (packed: rows) of a process, joint: of each group; "
        "null: the datasets' largest batch_size",
    )
    packing: Packing | None = option(None, "several samples per row (implies mixing: sample); null: off")
    batch_size_train: BatchSize | None = option(None, "batch_size of the entries of datasets that name none; null: 1")
    batch_size_eval: BatchSize | None = option(None, "the same of valid_datasets and evaluation_datasets")
    group_by_length: Natural = option(
        0,
        "batches whose samples are sorted by length and cut into batches again (with global_batch, whatever the "
        "number, those of a step); 0: off",
    )
    seed: Seed = option(42, "seed of everything; ranks add their number")

    output_dir: str = option("output", "the run folder itself; relative to the working folder")
    job_name: str | None = option(None, "name of the run in trackers")
    overwrite: bool = option(False, "allow an output folder that holds another run")
    resume: str = option("never", "never, auto (last checkpoint of output_dir if any) or a run folder")
    resume_ckpt_path: str | None = option(None, "published spelling of resume: PATH")
    allow_other_base: bool = option(
        False, "load what a run trained onto other frozen weights than those that it was trained with"
    )
    save_freq: Natural = option(0, "steps between checkpoints; 0: at epoch ends")
    keep_last: Natural = option(3, "newest checkpoints kept, 0: all; best and last always are")
    keep_every: Natural = option(0, "also keep every checkpoint whose step is a multiple; 0: none")

    valid_datasets: Names = option([], "names out of the section valid_datasets; empty: all of them")
    val_freq: Natural = option(0, "steps between validations; 0: at epoch ends")
    val_batches: Natural = option(
        0, "batches per validation, of each process (with global_batch, of all together); 0: all"
    )
    eval: list[TrainingEvaluation] = option([], "benchmarks that are asked while the run trains")
    best: str = option(
        "loss",
        "what the checkpoint `best` has the best of: loss (of validation), or DATASET/METRIC of run.eval, such as "
        "vqa/accuracy; -DATASET/METRIC where lower is better",
    )
    early_stop: Natural = option(0, "stop after so many values of run.best without improvement; 0: never")

    log_freq: Count = option(50, "steps between log lines")
    trackers: Names = option(["jsonl", "tensorboard", "progress"], "where numbers go")
    wandb_log: bool = option(False, "also log to Weights & Biases")
    wandb_project: str | None = option(None, "project there; null: vlm")
    report: bool = option(True, "write report.html at the end, and verify.json for `vlm verify`")
    report_samples: Natural = option(4, "sample answers with images in the report")

    name: str | None = option(None, "evaluation: name of the result file")
    save_path: str | None = option(None, "evaluation: folder of the results; null: output_dir")

    max_new_tokens: Count | None = option(
        None, "evaluation: longest answer of the entries of evaluation_datasets that name none; null: 20"
    )

    serving: Serving = field(
        default_factory=Serving, metadata={"help": "how an engine answers many questions at a time"}
    )

    distributed: bool = no_effect(False, "decided by torchrun's environment: more than one process is distributed")
    world_size: int = no_effect(1, "given by torchrun (--nproc-per-node)")
    dist_url: str = no_effect("env://", "torchrun's environment is the only rendezvous")
    evaluate: bool = no_effect(False, "use `vlm eval`")
    train_splits: list[str] = no_effect([], "every entry of `datasets` is trained on")
    valid_splits: list[str] = no_effect([], "use the section `valid_datasets`")
    test_splits: list[str] = no_effect([], "use `evaluation_datasets` and `vlm eval`")
    use_dist_eval_sampler: bool = no_effect(True, "evaluation data is always split over the processes")
    eval_file_path: str = no_effect("", "name the benchmark: evaluation_datasets.NAME.eval_file_path")
    img_path: str = no_effect("", "name the benchmark: evaluation_datasets.NAME.img_path")
    num_ans_candidates: int = no_effect(0, "answers are written, not ranked; a benchmark can rank by its own rule")
    inference_method: str = no_effect("generate", "answers are written; a benchmark can rank by its own rule")
    max_len: int = no_effect(0, "use evaluation_datasets.NAME.max_new_tokens")
    min_len: int = no_effect(0, "use model.generation.min_length")
    num_beams: int = no_effect(1, "use model.generation.num_beams")
    prompt: str = no_effect("", "a dataset's build_info has the texts of its questions")
    use_ocr: bool = no_effect(False, "a dataset's build_info has the texts of its questions")

    def __post_init__(self) -> None:
        """Raises ValueError for data options that contradict each other."""
        if conflicts := list(self._conflicts()):
            raise ValueError("; ".join(conflicts))

    def _conflicts(self) -> Iterator[str]:
        if self.packing is not None and self.group_by_length:
            yield "packing and group_by_length are two ways to save padding; set one of them to null or 0"
        if self.mixing == "joint" and (self.packing is not None or self.group_by_length):
            yield "mixing: joint can be combined with neither packing nor group_by_length; set them to null"
        if self.loss_reduction == "groups" and self.mixing != "joint":
            yield f"loss_reduction: groups needs mixing: joint, found mixing: {self.mixing}"
        if self.global_batch is not None and self.accum_grad_iters != 1:
            yield (
                f"global_batch decides how many micro-batches a step has, but accum_grad_iters is "
                f"{self.accum_grad_iters}; set accum_grad_iters to 1, or global_batch to null"
            )
        if self.global_batch is not None and self.loss_reduction == "batches":
            yield (
                "loss_reduction: batches depends on how a step is cut into micro-batches, so it cannot be combined "
                "with global_batch; set it to tokens or groups"
            )
        evaluates = bool(self.eval_file_path)  # a published file in which batch_size is that of the evaluation
        if self.batch_size is not None and self.mixing == "batch" and self.packing is None and not evaluates:
            yield (
                "batch_size has no effect with mixing: batch, where each dataset has its own; "
                "set datasets.NAME.batch_size, or run.mixing=sample"
            )
        if self.wandb_log and "wandb" in self.trackers:
            yield "wandb_log: true adds the tracker wandb, which trackers already names; leave one of them out"

    @property
    def total_steps(self) -> int | None:
        """Steps of the run; None: they depend on the data."""
        return self.max_steps or (self.max_epoch * self.iters_per_epoch if self.iters_per_epoch else None)


NO_EFFECT: dict[str, str] = {f.name: f.metadata["help"] for f in fields(RunConfig) if "no_effect" in f.metadata}
"""Published keys that change nothing here, and why."""
