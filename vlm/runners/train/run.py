"""``run_training``: from a checked configuration to a trained run folder, as a sequence of named steps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm.checkpoint.provenance import fingerprint
from vlm.checkpoint.run_folder import RunDir
from vlm.common import dist
from vlm.common.errors import ConfigError, UserError
from vlm.common.registry import resolve
from vlm.common.types import Message, Sample, Text
from vlm.config.api import Config
from vlm.config.tree import to_yaml
from vlm.datasets.base import read_record, records_in_order
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.datasets.loading.valid_loader import ValidLoader
from vlm.inference.engine import Engine
from vlm.models.build import check_images, check_positions
from vlm.models.quantized.llm import check_trains
from vlm.models.trainable import trainable_table
from vlm.pages.parts import AnswerCard
from vlm.processors.collate import VisualTokens
from vlm.processors.processor import Processor, build_processor
from vlm.runners.features.cache import check_cache, open_cache
from vlm.runners.train.evaluate import TrainingEvaluations
from vlm.runners.train.optim import Precision, pick_precision
from vlm.runners.train.parallel.copies import spread_of
from vlm.runners.train.parallel.mesh import check_parallel
from vlm.runners.train.parallel.recompute import checkpoint_activations
from vlm.runners.train.parallel.sharding import load_spread
from vlm.runners.train.report import write_report
from vlm.runners.train.trackers import RunInfo, Tracker, open_trackers
from vlm.runners.train.trainer import RunResult, Trainer
from vlm.runners.train.validate import Validator
from vlm.runners.verify.record import FILE as VERIFY
from vlm.runners.verify.record import make_record, write_record
from vlm.tasks.base import Task

if TYPE_CHECKING:
    from vlm.models.vlm import VLM

log = logging.getLogger(__name__)

ANSWER_TOKENS = 80  # longest sample answer of the report


def run_training(cfg: Config) -> RunResult:
    """Train what ``cfg`` describes in this process (or process group).

    Returns:
        where and how the run ended; ``exit_code`` is the exit code of the command.

    Raises:
        UserError: anything the user can fix, before or during training.
    """
    check_cache(cfg)
    with dist.joined(cfg.run.device, cfg.run.num_workers) as (world, device):
        return _train(cfg, world, device)


def build_model(cfg: Config, world: dist.World, device: torch.device) -> tuple[VLM, Processor, VisualTokens, Precision]:
    """The model of a run as it starts, what reads its samples, and how a step computes; also seeds this process.

    Raises UserError: weights or options that do not fit.
    """
    run = cfg.run
    dist.seed_everything(run.seed, world.rank, run.deterministic)
    precision = pick_precision(run.amp, run.amp_dtype, device)
    check_parallel(run, cfg.model.llm.config, dist.world_size(), device)
    check_trains(cfg.model, device)
    model = load_spread(cfg, device, precision)
    check_positions(model, cfg.model.text)
    check_images(model, cfg.model.image)
    checkpoint_activations(model, run.activation_checkpointing)
    visual_tokens = VisualTokens.of(model.visual_tokens, model.counters())
    processor = build_processor(cfg.model).within(model.positions, visual_tokens)
    return model, processor, visual_tokens, precision


def build_trainer(
    cfg: Config,
    run_dir: RunDir,
    model: VLM,
    processor: Processor,
    loader: TrainLoader,
    device: torch.device,
    precision: Precision,
) -> Trainer:
    """The registered runner over these parts. Raises UserError: an option of the run is not allowed."""
    run = cfg.run
    task = resolve("task", run.task)()
    trainer: Trainer = resolve("runner", run.runner)(
        model,
        loader,
        task,
        run,
        run_dir=run_dir,
        device=device,
        epoch_steps=epoch_length(cfg, loader),
        groups=loader.groups,
        validator=build_validator(cfg, model, task, processor, device, precision),
        evaluations=TrainingEvaluations(cfg, model, processor, device) if run.eval else None,
        config=cfg.resolved,
        config_text=to_yaml(cfg.resolved),
        fingerprints=fingerprint(model),
    )
    return trainer


def _train(cfg: Config, world: dist.World, device: torch.device) -> RunResult:
    """Everything that needs the process group; what it builds is released when it returns."""
    run_dir, source = find_run(cfg)
    model, processor, visual_tokens, precision = build_model(cfg, world, device)
    processor, close_cache = open_cache(cfg, model, processor, device, precision.amp_dtype)
    loader = build_loader(cfg, processor, visual_tokens, world, device, run_dir.path)
    trainer = build_trainer(cfg, run_dir, model, processor, loader, device, precision)
    if source is not None:
        trainer.resume(source)
    open_run(cfg, run_dir)
    with run_dir.written("the log"):
        trackers = start_trackers(cfg, run_dir, trainer)
    result = trainer.fit(trackers)
    loader.close()
    close_cache()
    if cfg.run.report:
        finish(cfg, model, processor, run_dir, result, device)
    dist.barrier()
    return result


def finish(
    cfg: Config, model: VLM, processor: Processor, run_dir: RunDir, result: RunResult, device: torch.device
) -> None:
    """Write the report and what ``vlm verify`` compares with (rank 0); a collective call where the model is in shards.

    Shards that one process cannot gather leave answers out, with a warning.
    """
    with spread_of(model).unsharded() as possible:
        if not dist.is_main():
            return
        if not possible:
            log.warning("the model in one piece does not fit into the free memory: no sample answers, no %s", VERIFY)
        report(cfg, model, processor, run_dir, result, device, answers=possible)
        if possible and not result.received:
            record(Engine(model, processor, config=cfg, device=device), run_dir)


def build_loader(
    cfg: Config,
    processor: Processor,
    visual_tokens: VisualTokens,
    world: dist.World,
    device: torch.device,
    notes: Path | None,
) -> TrainLoader:
    """The batches of one process; bad records are listed in the folder ``notes``. Raises as ``from_config``."""
    run = cfg.run
    return TrainLoader.from_config(
        cfg.datasets,
        processor,
        seed=run.seed,
        rank=world.rank,
        world_size=world.size,
        num_workers=run.num_workers,
        output_dir=notes,
        max_bad_share=run.max_bad_share,
        max_cut_share=run.max_cut_share,
        mixing=run.mixing,
        batch_size=run.batch_size,
        global_batch=run.global_batch,
        group_by_length=run.group_by_length,
        packing=run.packing,
        visual_tokens=visual_tokens,
        pin_memory=device.type != "cpu",
    )


def resume_choice(cfg: Config) -> str:
    """``run.resume``, or the published ``run.resume_ckpt_path``."""
    return (cfg.run.resume == "never" and cfg.run.resume_ckpt_path) or cfg.run.resume


def find_run(cfg: Config) -> tuple[RunDir, Path | None]:
    """The run folder and the checkpoint to resume from; rank 0 looks them up before anything is loaded.

    Raises UserError: on every rank, if the folder holds another run or there is nothing to resume.
    """
    run_dir = RunDir(cfg.run.output_dir)
    source: Path | UserError | None = None
    if dist.is_main():
        try:
            source = run_dir.check(resume_choice(cfg), cfg.run.overwrite)
        except UserError as error:
            source = error  # the other processes wait for it
    source = dist.broadcast_object(source)
    if isinstance(source, UserError):
        raise source
    return run_dir, source


def open_run(cfg: Config, run_dir: RunDir) -> None:
    """Prepare the folder (rank 0) once everything else is ready: an overwritten run is deleted only here."""
    if dist.is_main():
        run_dir.prepare(resume_choice(cfg), cfg.run.overwrite)
        run_dir.write_config(to_yaml(cfg.resolved))
    log.info("run folder %s (its config.yaml holds every resolved value)", run_dir.path)
    dist.barrier()


def epoch_length(cfg: Config, loader: TrainLoader) -> int:
    """Optimiser steps of an epoch: ``run.iters_per_epoch``, else one pass over the data, else the whole run.

    Raises ConfigError: none of these is known.
    """
    if cfg.run.iters_per_epoch:
        return cfg.run.iters_per_epoch
    if loader.steps_per_epoch:  # with run.global_batch these are steps, and accum_grad_iters is 1
        return max(loader.steps_per_epoch // cfg.run.accum_grad_iters, 1)
    if cfg.run.max_steps:
        return cfg.run.max_steps
    raise ConfigError(
        "the length of an epoch is not known for several datasets, for streams, or for packing without global_batch",
        fix="set run.iters_per_epoch (optimiser steps) or run.max_steps",
    )


def build_validator(
    cfg: Config, model: VLM, task: Task, processor: Processor, device: torch.device, precision: Precision
) -> Validator | None:
    """The validation loss of the configured datasets, or None without any.

    Raises ConfigError: ``run.valid_datasets`` names a dataset that is not configured.
    """
    expected = cfg.run.valid_datasets or list(cfg.valid_datasets)
    unknown = [name for name in expected if name not in cfg.valid_datasets]
    if unknown:
        raise ConfigError(
            f"run.valid_datasets: unknown dataset {', '.join(unknown)} "
            f"(the section valid_datasets has: {', '.join(cfg.valid_datasets) or 'none'})",
            fix="add it under valid_datasets, or remove the name",
        )
    if not expected:
        return None
    loaders = {}
    for name in expected:
        entry = cfg.valid_datasets[name]
        shares = 1 if cfg.run.global_batch else dist.world_size()
        limit = cfg.run.val_batches * entry.batch_size * shares or None
        ranks = {"rank": dist.rank(), "world_size": dist.world_size()}
        loaders[name] = ValidLoader.from_config({name: entry}, processor, seed=cfg.run.seed, max_samples=limit, **ranks)
    return Validator(model, task, loaders, device=device, precision=precision)


def start_trackers(cfg: Config, run_dir: RunDir, trainer: Trainer) -> list[Tracker]:
    """The trackers of the run; empty except on rank 0."""
    if not dist.is_main():
        return []
    name, project = cfg.run.job_name or run_dir.path.resolve().name, cfg.run.wandb_project or "vlm"
    steps = {"total_steps": trainer.total_steps, "start_step": trainer.progress.step, "log_freq": cfg.run.log_freq}
    info = RunInfo(run_dir.path, name, project=project, config=cfg.resolved, **steps)
    return open_trackers([*cfg.run.trackers, *(["wandb"] if cfg.run.wandb_log else [])], info)


def report(
    cfg: Config,
    model: VLM,
    processor: Processor,
    run_dir: RunDir,
    result: RunResult,
    device: torch.device,
    answers: bool = True,
) -> None:
    """Write the HTML report with a few sample answers, or without (``answers``, or if a sample cannot be read).

    A run that a signal stopped gets none: whoever sent it kills the process soon after. A report that cannot be written
    is a warning, since the run itself is saved.
    """
    title = cfg.run.job_name or run_dir.path.resolve().name
    try:
        samples = [] if result.received or not answers else sample_answers(cfg, model, processor, device)
    except UserError as error:
        log.warning("the report has no sample answers: %s", error)
        samples = []
    try:
        path = write_report(run_dir, samples, title=title, status=result.status, table=trainable_table(model))
        log.info("report: %s", path)
    except OSError as error:
        log.warning("the report cannot be written: %s", error)


def record(engine: Engine, run_dir: RunDir) -> None:
    """Write what ``vlm verify`` compares with later; a model that cannot answer its questions is a warning."""
    try:
        write_record(run_dir.path / VERIFY, make_record(engine))
    except UserError as error:
        log.warning("%s, for `vlm verify`, was not written: %s", VERIFY, error)


def sample_answers(cfg: Config, model: VLM, processor: Processor, device: torch.device) -> list[AnswerCard]:
    """Greedy answers to the first question of a few samples, of validation data if there is any."""
    from vlm.datasets.loading.sources import build_sources
    from vlm.inference.generation import Generation

    if cfg.run.report_samples <= 0:
        return []
    dataset = build_sources(cfg.valid_datasets or cfg.datasets, processor)[0].dataset
    records = records_in_order(dataset, cfg.run.report_samples)
    samples = [s for s in (read_record(dataset, *r) for r in records) if s.messages[-1].role == "assistant"]
    questions = [question_of(s) for s in samples]
    generation = Generation(do_sample=False, max_new_tokens=ANSWER_TOKENS, repetition_penalty=1.0, temperature=1.0)
    answers = Engine(model, processor, config=cfg, device=device).generate([q for q, _ in questions], generation)
    images = [[m.source for message in question for m in message.media][:2] for question, _ in questions]
    return [
        AnswerCard(question[-1].text, answer, reference, images=shown, name=sample.id)
        for sample, shown, (question, reference), answer in zip(samples, images, questions, answers, strict=True)
    ]


def question_of(sample: Sample) -> tuple[list[Message], str]:
    """The messages before the first answer, and that answer; an image without text gets a request to describe it."""
    first = next(i for i, m in enumerate(sample.messages) if m.role == "assistant")
    question = list(sample.messages[:first])
    last = question[-1]
    if not last.text.strip():
        question[-1] = Message(last.role, (*last.parts, Text("Describe this image in detail.")))
    return question, sample.messages[first].text
