"""``run.runner: closed_form``: the last bridge starts as the best linear map to what the answers say."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common import dist
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_runner
from vlm.common.types import Batch, Features
from vlm.models.frozen.encode import encode_stored
from vlm.models.protocols import LinearAtFirst, NamesWords
from vlm.models.vlm import VLM
from vlm.runners.fit.ridge import RidgeSums
from vlm.runners.fit.targets import Targets, targets_of
from vlm.runners.train.signals import StopSignals
from vlm.runners.train.step import amp_context
from vlm.runners.train.trackers import Tracker
from vlm.runners.train.trainer import RunResult, Trainer

log = logging.getLogger(__name__)


@register_runner("closed_form")
class ClosedForm(Trainer):
    """Solves for the linear layer of the last bridge by ridge regression, in one pass over the data; no gradient.

    Each visual token of a sample is mapped to the mean embedding of the sample's supervised tokens, without the last
    one, which ends the answer; by a bridge with a vocabulary, to the answer as one word. ``run.weight_decay`` is the
    penalty, for channels of variance 1. Only ``max_steps`` (or one epoch) of the options of a run's steps counts; a run
    that was stopped begins again.
    """

    def fit(self, trackers: list[Tracker] | None = None) -> RunResult:
        """See :meth:`Trainer.fit`; the loss is the share of the targets' variance that is left unexplained.

        Raises:
            ConfigError: the last bridge is not linear at first, or has no bias, or is frozen; samples are packed, or
                weights split.
            DataError: no sample has a medium and an answer of two tokens, or more answers than visual words.
        """
        started, trackers = time.perf_counter(), trackers or []
        model: Any = self.model
        layer = layer_of(model)
        if self.run.packing is not None:
            raise ConfigError("run.runner closed_form reads one sample per row", fix="set run.packing to null")
        if self.run.parallel.shard != "none":
            raise ConfigError("run.runner closed_form needs whole weights", fix="set run.parallel.shard to none")
        model.eval()
        sums, targets = RidgeSums(layer.in_features, layer.out_features, self.device), targets_of(model, layer)
        with ExitStack() as closing:
            for tracker in trackers[::-1]:
                closing.callback(tracker.close)
            closing.callback(self.watchdog.close)
            with StopSignals() as signals, self.saving:
                for number in range(1, self.total_steps + 1):
                    with self.watchdog.watching(number, "reading data"):
                        batches = self.loader.step(self.step_batches)
                    for batch in batches:
                        self.progress.samples += batch.num_samples
                        self._add(model, batch.to(self.device), sums, targets)
                    if signals.requested:
                        return RunResult(self.run_dir.path, "stopped", 0, self.progress.loss, received=signals.received)
                self._solve(layer, sums, targets)
                self.progress.step, self.progress.seconds = self.total_steps, time.perf_counter() - started
                self._tell(trackers, self._record(sums.rows))
                self.saving.save(False)
        return RunResult(
            self.run_dir.path, "finished", self.total_steps, self.progress.loss, seconds=self.progress.seconds
        )

    def _add(self, model: VLM, batch: Batch, sums: RidgeSums, targets: Targets) -> None:
        if not batch.has_media:
            return
        with torch.no_grad(), amp_context(self.device, self.stepper.precision):
            entered, real = entering(model, batch)
            wanted, known = targets.of(batch)
        rows = batch.media_row
        use = real & known[rows][:, None, None]
        wanted = wanted[rows][:, None, None].expand(*use.shape, -1)
        sums.add(entered[use].float(), wanted[use].float())

    def _record(self, tokens: int) -> dict[str, Any]:
        """The one line of the log: as a step's, where that makes sense."""
        seconds, idle = self.progress.seconds, {"lr": 0.0, "grad_norm": 0.0, "data_seconds": 0.0, "skipped": 0}
        counts = {"targets": tokens, "tokens": tokens, "samples": self.progress.samples, "seconds": seconds}
        memory = dist.peak_memory_mib(self.device)
        place = {"kind": "train", "step": self.total_steps, "epoch": 0, "loss": self.progress.loss}
        return {**place, **idle, **counts, "memory_mib": memory}

    def _solve(self, layer: nn.Linear, sums: RidgeSums, targets: Targets) -> None:
        targets.over_processes(sums)
        sums.over_processes()
        if sums.rows < 2:
            raise DataError(
                "closed_form: no sample has an image and an answer of two tokens or more, its end included",
                fix="check the data with `vlm data show`",
            )
        found = sums.solve(self.run.weight_decay)
        with torch.no_grad():
            layer.weight.copy_(found.weight)
            layer.bias.copy_(found.bias)
        targets.finish()
        self.progress.loss = found.unexplained
        log.info(
            "closed form: %s visual tokens, penalty %g, %.1f %% of the targets' variance explained",
            *(f"{sums.rows:,}", self.run.weight_decay, 100 * (1 - found.unexplained)),
        )


def layer_of(model: VLM) -> nn.Linear:
    """The layer to solve for. Raises ConfigError: the last bridge has none with a bias, or it is frozen."""
    last = model.bridge[-1] if len(model.bridge) else None
    layer = last.first_layer() if last is not None and isinstance(last, LinearAtFirst) else None
    if layer is not None and (frozen := [n for n, p in solved_for(last, layer) if not p.requires_grad]):
        raise ConfigError(
            f"run.runner closed_form solves for {', '.join(frozen)} of the last bridge, which is frozen",
            fix="train it: model.train: ['bridge.*']",
        )
    if layer is None or layer.bias is None:
        found = "there is no bridge" if last is None else f"the last one is {type(last).__name__}"
        raise ConfigError(
            f"run.runner closed_form needs a last bridge that is linear at first, with a bias; {found}",
            fix="end model.bridge with linear, visual_vocabulary or {name: mlp, shortcut: true}",
        )
    return layer


def solved_for(bridge: Any, layer: nn.Linear) -> list[tuple[str, nn.Parameter]]:
    """What the solution changes, and a checkpoint must hold: of a vocabulary the words' embeddings too."""
    own = {id(parameter) for parameter in layer.parameters()}
    return [(n, p) for n, p in bridge.named_parameters() if id(p) in own or isinstance(bridge, NamesWords)]


@contextmanager
def without_last(model: VLM) -> Iterator[Any]:
    """The model with one bridge less, which is given."""
    last = model.bridge.pop(-1)
    try:
        yield last
    finally:
        model.bridge.append(last)


def entering(model: VLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """What enters the linear layer ``[n, f, v, d]``, and which of these tokens are real ``[n, f, v]``."""
    with without_last(model) as last:
        if batch.stored is not None:
            value: Features = encode_stored(model, batch, batch.stored)
        else:
            assert batch.pixels is not None
            value = model.encode(batch.pixels, batch.frames, batch.about)
    tokens = last.entered(value)
    every = torch.ones(tokens.shape[:3], dtype=torch.bool, device=tokens.device)
    return tokens, every if value.mask is None else value.mask
