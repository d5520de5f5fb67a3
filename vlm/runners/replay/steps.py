"""The steps of a run, in one process: what several processes computed is computed one after another.

The gradient of each process is divided by their number and added up in their order, as data-parallel training does; two
summands have only one order, so a step of one or two processes is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.run_files import STATE
from vlm.checkpoint.run_folder import RunDir, read_state
from vlm.checkpoint.train_state import capture_rng, restore_rng
from vlm.common import dist
from vlm.common.types import Batch
from vlm.config.api import Config
from vlm.datasets.loading.mixing import derive_seed
from vlm.processors.collate import VisualTokens
from vlm.processors.processor import Processor
from vlm.runners.replay.found import Start
from vlm.runners.replay.tokens import TokenLoss, TokenLosses
from vlm.runners.train.loss_weighting import GroupCounts
from vlm.runners.train.optim import set_lr
from vlm.runners.train.run import build_loader, build_model, build_trainer
from vlm.runners.train.step import StepCounts, StepSums
from vlm.runners.train.trainer import Trainer


@dataclass(frozen=True)
class Looked:
    """A step that was computed but not taken."""

    loss: float
    grad_norm: float  # before clipping
    parts: dict[str, float]  # norm of the gradient of each part
    sums: StepSums
    batches: list[list[Batch]]  # of each process
    losses: list[list[float]]  # their loss sums
    tokens: list[list[list[TokenLoss]]]  # of every micro-batch, by its samples


class Replayer:
    """The run of a configuration at a checkpoint (or at its beginning), ready to go on.

    Raises:
        UserError: weights or data that the run used are gone or have changed.
    """

    def __init__(self, cfg: Config, run_dir: RunDir, start: Start, device: torch.device) -> None:
        self.device, self.step, size = device, start.step, start.processes
        self._rng: list[dict[str, Any]] = []
        if start.checkpoint is None:  # random states after each process has built what it trains
            for rank in range(1, size):
                self._build(cfg, run_dir, dist.World(rank, size))
                self._rng.append(capture_rng(device))
        self.trainer, self.processor, self.visual_tokens = self._build(cfg, run_dir, dist.World(0, size))
        self._rng.insert(0, capture_rng(device))
        others = [dist.World(rank, size) for rank in range(1, size)]
        parts = cfg, self.processor, self.visual_tokens
        self.loaders = [self.trainer.loader, *(build_loader(*parts, world, device, None) for world in others)]
        if start.checkpoint is not None:
            states = read_state(start.checkpoint / STATE)["ranks"]
            self.trainer.resume(start.checkpoint)
            for loader in self.loaders[1:]:
                loader.load_states([state["loader"] for state in states])
            same = len(states) == size
            self._rng = [state["rng"] for state in states] if same else self._seeded(cfg, size, start.step)
        self.trainer.model.train()
        restore_rng(self._rng[0], device)

    def _build(self, cfg: Config, run_dir: RunDir, world: dist.World) -> tuple[Trainer, Processor, VisualTokens]:
        """What a process of the run builds before its first step."""
        model, processor, visual_tokens, precision = build_model(cfg, world, self.device)
        loader = build_loader(cfg, processor, visual_tokens, world, self.device, None)
        return (
            build_trainer(cfg, run_dir, model, processor, loader, self.device, precision),
            processor,
            visual_tokens,
        )

    def _seeded(self, cfg: Config, size: int, step: int) -> list[dict[str, Any]]:
        """Random states of a run that was resumed with another number of processes."""
        seed, states = derive_seed(cfg.run.seed, "processes", size, step) % 2**31, []
        for rank in range(size):
            dist.seed_everything(seed, rank, cfg.run.deterministic)
            states.append(capture_rng(self.device))
        return states

    def skip_to(self, step: int) -> None:
        """Move the data to ``step``; the weights stay as they are."""
        for loader in self.loaders:
            loader.skip(step - 1 - self.step, self.trainer.step_batches)
        self.step = step - 1

    def train_to(self, step: int) -> None:
        """Train until the next step is ``step``, as the run did. Raises as training does."""
        stepper = self.trainer.stepper
        while self.step < step - 1:
            self.step += 1
            lr = self.trainer.schedule(self.step - 1)
            work = self._fetch()
            if len(work) == 1:
                stepper(work[0], self.step, lr)
                continue
            set_lr(stepper.optimizer, lr)
            sums, losses, _ = self._compute(work)
            flat = [batch for batches in work for batch in batches]
            stepper._update(sums, flat, [loss for own in losses for loss in own], self.step)

    def look(self) -> Looked:
        """Compute the next step without taking it; its gradient is dropped afterwards."""
        work = self._fetch()
        sums, losses, tokens = self._compute(work, watch=True)
        loss, norm, factor = self.trainer.stepper.means(sums)
        parts = part_norms(self.trainer.model, factor)
        self.trainer.optimizer.zero_grad(set_to_none=True)
        numbers = [[float(value) for value in own] for own in losses]
        return Looked(loss, norm, parts, sums, work, numbers, tokens)

    def close(self) -> None:
        """End the loaders' workers."""
        for loader in self.loaders:
            loader.close()

    def _fetch(self) -> list[list[Batch]]:
        return [loader.step(self.trainer.step_batches) for loader in self.loaders]

    def _compute(
        self, work: list[list[Batch]], watch: bool = False
    ) -> tuple[StepSums, list[list[Tensor]], list[list[list[TokenLoss]]]]:
        """The gradient of the step in the parameters; its sums; loss sums and token losses of the micro-batches."""
        stepper, size = self.trainer.stepper, len(work)
        counts = total([StepCounts.of(b, False, stepper.reduction, self.device) for b in work])
        own, losses, tokens = list[Tensor](), list[list[Tensor]](), list[list[list[TokenLoss]]]()
        gradient: dict[int, Tensor] = {}
        for rank, batches in enumerate(work):
            if size > 1:
                restore_rng(self._rng[rank], self.device)
            scales = (size * stepper.reduction.weights(batches, counts.groups)).float()
            mine, seen = list[Tensor](), 0
            with TokenLosses(self.trainer.model if watch else None) as spy:
                for batch, scale in zip(batches, scales, strict=True):
                    loss_sum, num = stepper._forward(batch)
                    stepper.scaler.scale(loss_sum * scale).backward()
                    mine.append(loss_sum.detach())
                    seen += num
            own.append(stepper.own_sums(batches, counts, mine, seen))
            losses.append(mine)
            tokens.append(spy.found)
            if size > 1:
                self._rng[rank] = capture_rng(self.device)
                self._collect(gradient, size)
        for number, parameter in enumerate(stepper.parameters):
            if number in gradient:
                parameter.grad = gradient[number]
        stepper.scaler.unscale_(stepper.optimizer)
        return stepper.on_host(counts, sum(own[1:], own[0])), losses, tokens

    def _collect(self, gradient: dict[int, Tensor], size: int) -> None:
        """Add this process's share to the gradient of the step."""
        for number, parameter in enumerate(self.trainer.stepper.parameters):
            if parameter.grad is None:
                continue
            share = parameter.grad.div_(size)
            gradient[number] = gradient[number].add_(share) if number in gradient else share
            parameter.grad = None


def total(counts: Sequence[StepCounts]) -> StepCounts:
    """Counts of several processes as one all-reduce would give them."""
    first = counts[0]
    for other in counts[1:]:
        values = {f.name: _sum(vars(first)[f.name], vars(other)[f.name]) for f in fields(StepCounts)}
        first = StepCounts(**values)
    return first


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, GroupCounts):
        return GroupCounts(one.targets + other.targets, one.batches + other.batches)
    return one + other


def part_norms(model: torch.nn.Module, factor: float) -> dict[str, float]:
    """Norm of the gradient of each part of a model, LoRA apart, in the order of the parts; ``factor`` scales all."""
    grads: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grads.setdefault(part_of(name), []).append(parameter.grad)
    return {part: float(torch.nn.utils.get_total_norm(found)) * factor for part, found in grads.items()}


def part_of(name: str) -> str:
    """The part that a parameter belongs to: ``vision``, ``bridge.0``, ``inserts.1``, ``llm``, ``llm lora``."""
    part = ".".join(name.split(".")[: 2 if name.startswith(("bridge.", "inserts.")) else 1])
    return f"{part} lora" if ".lora_" in name else part
