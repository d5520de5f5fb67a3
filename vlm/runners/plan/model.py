"""The model of a configuration without its numbers: parameters of each part, and what stays in memory all the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm.common.errors import WeightsError
from vlm.models.build import build_model
from vlm.models.llm.hf import HFCausalLM
from vlm.models.vlm import VLM
from vlm.runners.plan.fake import Faking, Memory, Work, counting
from vlm.runners.plan.quantised import quantise
from vlm.runners.train.optim import Precision, optimizer_of
from vlm.runners.train.parallel.recompute import checkpoint_activations

SIZES_FIX = (
    "a plan reads no weights, but it needs the sizes: give a folder with config.json, or write them out, e.g. "
    "--options model.llm.path=null model.llm.config.model_type=llama model.llm.config.hidden_size=4096"
)
PARTS = ("vision", "bridge", "inserts", "llm")


@dataclass(frozen=True)
class PartSize:
    """Parameters of a part."""

    name: str
    total: int  # numbers
    trained: int  # of them
    bytes: int  # as they are stored
    trained_bytes: int


@dataclass
class Still:
    """What a process holds between steps, in bytes, and what the update needs beside it."""

    parts: list[PartSize]
    weights: int
    buffers: int
    gradients: int
    optimizer: int
    update: int  # largest that the update itself holds, gradients and states not counted
    saved: int  # bytes of a checkpoint: what trains, and the optimiser's states
    work: Work  # of the update


@dataclass
class Faked:
    """A model of fake tensors, and what made it."""

    model: VLM
    faking: Faking
    precision: Precision
    device: torch.device  # that is planned for
    still: Still


def build_fake(cfg: Any, device: torch.device, precision: Precision) -> Faked:
    """The composition of ``cfg`` as the run would have it on ``device``, without numbers.

    Raises:
        ConfigError: parts do not fit together.
        WeightsError: a part's sizes are in a folder that is not there.
    """
    faking = Faking()
    parts = ["vision", "llm", *(f"{kind}.{i}" for kind in ("bridge", "inserts") for i in range(64))]
    options = cfg.model.llm.config
    quantised = options.quantize if isinstance(options, HFCausalLM.Config) else None
    dtype = precision.amp_dtype or torch.float32
    try:
        model = build_model(cfg.model, device="meta", dtype=dtype, uninitialised=parts, meant_for=device)
    except WeightsError as error:
        raise WeightsError(str(error).partition("\n")[0], fix=SIZES_FIX) from error
    if quantised:
        with torch.device("meta"):
            quantise(model, options)
    faking.adopt(model)
    choice = cfg.run.activation_checkpointing
    checkpoint_activations(model, "none" if choice == "none" else "torch")
    model.train()
    return Faked(model, faking, precision, device, hold_still(model, faking, cfg.run, device))


def hold_still(model: VLM, faking: Faking, run: Any, device: torch.device) -> Still:
    """Count what is held between steps by making it: the optimiser's states come from a step of the optimiser."""
    trained = [p for p in model.parameters() if p.requires_grad]
    memory = Memory()
    for tensor in (*model.parameters(), *model.buffers()):
        memory.ignore(tensor)
    with faking:
        optimizer = optimizer_of(model, run, device)
        with counting(faking, memory, None):
            memory.enter("gradients", "gradients")
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            memory.enter("first update", "optimiser")
            optimizer.step()
            states = memory.live["optimiser"]
            memory.enter("update", "workspace")
            with counting(faking, memory, work := Work()):
                torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
                optimizer.step()
            peak = memory.peaks["update"]["workspace"]
            gradients = memory.live["gradients"]
    for parameter in trained:
        parameter.grad = None
    parts = sizes_of(model)
    saved = sum(p.numel() * p.element_size() for p in trained) + states
    weights, buffers = sum(part.bytes for part in parts), sum(_bytes(b) for b in model.buffers())
    return Still(parts, weights, buffers, gradients, states, peak, saved, work)


def sizes_of(model: VLM) -> list[PartSize]:
    """Parameters of each part of ``model``; shared ones are counted once."""
    found: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        own = found.setdefault(name.partition(".")[0], [0, 0, 0, 0])
        count, size = numbers(parameter), _bytes(parameter)
        own[0] += count
        own[1] += count * parameter.requires_grad
        own[2] += size
        own[3] += size * parameter.requires_grad
    return [PartSize(name, *found[name]) for name in PARTS if name in found]


def numbers(parameter: nn.Parameter) -> int:
    """Parameters that a tensor stores: two in a byte of NF4."""
    return parameter.numel() * (2 if parameter.dtype is torch.uint8 else 1)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
