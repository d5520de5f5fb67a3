"""``replay``: from a run folder and the number of a step to what the run saw and computed there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, Literal

import torch

from vlm.checkpoint.provenance import make_provenance
from vlm.common import dist
from vlm.common.errors import DataError, UserError
from vlm.common.types import Batch
from vlm.config.api import Config, load_config
from vlm.config.run import Parallel
from vlm.datasets.base import RECORD_FAULTS
from vlm.datasets.inspect.render import describe_media, pieces
from vlm.datasets.loading.sampler import Key, Ref, cursor
from vlm.datasets.loading.sources import Source, read_sample
from vlm.inference.load import needed
from vlm.pages.samples import images_of
from vlm.runners.replay.found import RunFound, Start, find_run, find_start, hardware_of
from vlm.runners.replay.record import BatchLook, Number, Replay, SampleLook, Token
from vlm.runners.replay.steps import Looked, Replayer
from vlm.runners.replay.tokens import TokenLoss, examples_of, places_of
from vlm.runners.train.trackers import LogRecord, duration

log = logging.getLogger(__name__)

FIX = "\n  fix: "

Weights = Literal["exact", "nearest"]
"""Train from the checkpoint to the step, or take the checkpoint's weights as they are."""


def replay(
    folder: str | Path,
    step: int,
    *,
    rank: int | None = None,
    weights: Weights = "exact",
    device: str | None = None,
    options: Sequence[str] = (),
) -> Replay:
    """Compute a step of a run again, in this process; nothing is written.

    Args:
        folder: run folder.
        step: optimiser step, from 1; the one after the last shows where the run broke off.
        rank: show only what this process of the run saw; None: all.
        weights: ``nearest`` skips the training between the checkpoint and the step.
        device: where to compute; None: as the configuration says.
        options: changes of the configuration, e.g. where the data is now.

    Raises:
        UserError: there is no such step or process, or what the run needs is gone or has changed.
    """
    run = find_run(folder)
    start = find_start(run, step)
    if rank is not None and not 0 <= rank < start.processes:
        raise UserError(
            f"--rank {rank}: step {step} was computed by {start.processes} process{'es' * (start.processes > 1)}",
            fix=f"--rank 0 to {start.processes - 1}" if start.processes > 1 else "leave --rank out",
        )
    cfg = configuration(start, options)
    with dist.joined(device or cfg.run.device, cfg.run.num_workers) as (world, found_device), _as_before():
        if world.size > 1:
            raise UserError("vlm replay runs in one process", fix="start it without torchrun")
        log.info("%s", plan_line(run, start, step, weights))
        if found_device.type == "cpu":
            torch.set_num_threads(_threads(start))
        return _replay(cfg, run, start, step, rank, weights, found_device)


def _replay(
    cfg: Config, run: RunFound, start: Start, step: int, rank: int | None, weights: Weights, device: torch.device
) -> Replay:
    with quiet_training():
        try:
            replayer = Replayer(alone(cfg, start), run.dir, start, device)
        except DataError as error:
            raise DataError(
                f"the data of the run cannot be read: {str(error).partition(FIX)[0]}",
                fix="start vlm replay where the run was started, or name the data with --options "
                "datasets.NAME.build_info.KEY=PATH",
            ) from error
        try:
            if weights == "exact":
                replayer.train_to(step)
            else:
                replayer.skip_to(step)
            looked = replayer.look()
        finally:
            replayer.close()
    record = run.record(step)
    exact = weights == "exact" or start.step == step - 1
    check_counts(record, looked, start)
    loss = Number(record["loss"] if record else None, looked.loss)
    why = reasons(cfg, start, device, exact)
    if exact and loss.is_far:
        why.insert(0, "records, images or other files have changed since the run: rounding is smaller than this")
    return Replay(
        run=str(run.dir.path),
        step=step,
        start="the beginning of the run" if start.checkpoint is None else str(start.checkpoint),
        trained=step - 1 - start.step if exact else 0,
        exact=exact,
        processes=start.processes,
        rank=rank,
        loss=loss,
        loss_sum=looked.sums.loss_sum,
        grad_norm=Number(record["grad_norm"] if record else None, looked.grad_norm),
        parts=looked.parts,
        batches=list(batches_of(replayer, cfg, looked, rank)),
        counts={"samples": int(looked.sums.samples), "targets": int(looked.sums.seen)},
        reasons=why,
    )


def configuration(start: Start, options: Sequence[str] = ()) -> Config:
    """The configuration of the step; files that trained parts began from may be gone if there is a checkpoint.

    Raises ConfigError: it cannot be used, or asks for what needs trust.
    """
    cfg = load_config(start.config, options, check="none")
    if start.checkpoint is not None:
        weights = [*filter(needed, cfg.model.weights)]
        cfg = changed(cfg, model=changed(cfg.model, weights=weights))
    return cfg


def alone(cfg: Config, start: Start) -> Config:
    """The same for one process that neither validates nor evaluates, and writes nothing."""
    # with several loaders one worker each is enough, since they read one after another
    workers = cfg.run.num_workers if start.processes == 1 else min(1, cfg.run.num_workers)
    single: dict[str, Any] = {"valid_datasets": [], "eval": [], "profile": None, "feature_cache": None}
    single |= {"parallel": Parallel(), "find_unused_parameters": False, "stall_seconds": 0, "num_workers": workers}
    return changed(cfg, run=changed(cfg.run, **single), valid_datasets={})


def plan_line(run: RunFound, start: Start, step: int, weights: Weights) -> str:
    """What a replay will do, and how long the run itself took for it."""
    place = "the beginning of the run" if start.checkpoint is None else start.checkpoint.name
    count = step - 1 - start.step
    if weights == "nearest":
        return f"step {step}: weights of {place}; the data of {count} steps is passed over"
    seconds = sum(r.get("seconds", 0.0) for r in run.records if start.step < r["step"] < step)
    took = f", which took the run {duration(seconds)}" if seconds else ""
    return f"step {step}: from {place}, training {count} steps again in memory{took}"


def check_counts(record: LogRecord | None, looked: Looked, start: Start) -> None:
    """Raises DataError: the step has other samples or trained tokens than the log says."""
    found = {"samples": int(looked.sums.samples), "targets": int(looked.sums.seen)}
    other = [k for k, v in found.items() if record is not None and isinstance(record.get(k), int) and record[k] != v]
    if record is not None and other:
        names = {"samples": "samples", "targets": "trained tokens"}
        text = " and ".join(f"{record[k]} {names[k]} in the log, {found[k]} now" for k in other)
        raise DataError(
            f"step {record['step']} of {start.processes} process{'es' * (start.processes > 1)}: {text}: the data, the "
            "tokenizer or the number of processes is not that of the run",
            fix="restore the data, or name it with --options datasets.NAME.build_info.KEY=PATH",
        )


def reasons(cfg: Config, start: Start, device: torch.device, exact: bool) -> list[str]:
    """Why a replay may not be equal to its run bit for bit, as far as this can be told."""
    hardware, versions = (start.facts.get(name) for name in ("hardware", "versions"))
    hardware, versions = hardware if isinstance(hardware, dict) else {}, versions if isinstance(versions, dict) else {}
    found = []
    if not exact:
        found.append(f"the weights (and random states) are those after step {start.step}")
    if start.processes > 2:
        found.append(f"{start.processes} processes added up their gradients in another order")
    if cfg.run.parallel.shard != "none" and start.processes > 1:
        found.append(f"run.parallel.shard={cfg.run.parallel.shard} adds up gradients and their norm shard by shard")
    if cfg.run.feature_cache is not None:
        found.append("the run read visual features from its cache, the replay computes them")
    ran_on, now = hardware.get("device"), dist.device_name(device)
    if ran_on and ran_on != now:
        found.append(f"the run was on {ran_on}, this is {now}")
    if device.type == "cpu" and start.facts and "threads" not in hardware:
        found.append("the run did not note its number of threads, on which the last bits depend")
    here = make_provenance(step=0, config={})["versions"]
    differ = [f"{name} {old} -> {here.get(name)}" for name, old in versions.items() if here.get(name) != old]
    found += [f"other versions: {', '.join(differ)}"] if differ else []
    if device.type != "cpu" and not cfg.run.deterministic:
        found.append("kernels of an accelerator add in no fixed order without run.deterministic=true")
    return found


def _threads(start: Start) -> int:
    return hardware_of(start.facts, "threads", torch.get_num_threads())


def batches_of(replayer: Replayer, cfg: Config, looked: Looked, rank: int | None) -> Iterator[BatchLook]:
    """What is shown of the micro-batches of all processes, or of one."""
    for number, batches in enumerate(looked.batches):
        if rank is not None and rank != number:
            continue
        media = media_of(replayer.loaders[number].sources, batches, cfg.run.seed)
        for place, batch in enumerate(batches):
            losses = looked.tokens[number][place] if looked.tokens[number] else []
            samples = _samples(replayer, batch, losses, media)
            yield BatchLook(number, place + 1, looked.losses[number][place], samples)


def _samples(
    replayer: Replayer, batch: Batch, losses: list[TokenLoss], media: dict[Key, list[str]]
) -> list[SampleLook]:
    result, processor = [], replayer.processor
    sources = replayer.trainer.loader.sources
    keys: Sequence[Key | None] = batch.sample_keys or [None] * len(batch.sample_ids)
    for place, (example, key) in enumerate(zip(examples_of(batch), keys, strict=True)):
        own = dict(zip(places_of(example), losses[place] if losses else ()))
        found = pieces(example, processor.tokenizer, replayer.visual_tokens)
        tokens = [Token(p.text, p.trained, p.medium, own.get(i)) for i, p in enumerate(found)]
        result.append(
            SampleLook(
                name=example.id,
                dataset=sources[key[0]].name if key else "",
                record=f"record {key[2]} of pass {key[1] + 1}" if key else "",
                media=media.get(key, ()) if key else (),
                loss_sum=sum(own.values()),
                targets=len(own),
                tokens=tokens,
                images=images_of(example, processor.image),
            )
        )
    return result


def media_of(sources: Sequence[Source], batches: Sequence[Batch], seed: int) -> dict[Key, list[str]]:
    """Files (or sizes) of the images and videos of every sample; a record that cannot be read again has none."""
    found: dict[Key, list[str]] = {}
    keys = [key for batch in batches for key in batch.sample_keys]
    for number, source in enumerate(sources):
        own = sorted({key for key in keys if key[0] == number})
        if not own:
            continue
        _, epoch, index = own[0]
        position = cursor(source.name, source.dataset, seed, number)
        refs = position.load_state_dict({**position.state_dict(), "epoch": epoch, "offset": index}, own)
        found |= {key: _media(source, refs[key], seed) for key in own if key in refs}
    return found


def _media(source: Source, ref: Ref, seed: int) -> list[str]:
    try:
        return [text.strip("<>") for text in describe_media(read_sample(source, ref, seed))]
    except RECORD_FAULTS as error:
        return [str(error).splitlines()[0]]


@contextmanager
def quiet_training() -> Iterator[None]:
    """What training would log again is of no interest here."""
    logger = logging.getLogger("vlm.runners.train")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _as_before() -> Iterator[None]:
    """Threads and random states of this process are afterwards what they were."""
    from vlm.checkpoint.train_state import capture_rng, restore_rng

    threads, states = torch.get_num_threads(), capture_rng(torch.device("cpu"))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        restore_rng(states, torch.device("cpu"))
