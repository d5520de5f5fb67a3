"""A model in shards: every process keeps a part of each layer, and gathers the layer while it computes (FSDP2)."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlm.checkpoint.load import load_model
from vlm.common import dist
from vlm.common.errors import ConfigError
from vlm.common.processes.shards import fill, is_split, machine_share, most, own, whole
from vlm.config.run import Parallel, RunConfig
from vlm.models.llm.hf import HFCausalLM
from vlm.models.vlm import VLM
from vlm.runners.train.optim import Precision
from vlm.runners.train.parallel.copies import Spread
from vlm.runners.train.parallel.mesh import make_mesh
from vlm.runners.train.parallel.units import Choice, Unit, choose, mib, size_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

log = logging.getLogger(__name__)

ROOM = 0.7
"""Share of the free memory that gathered weights may take."""
GRADIENTS = 1 / 8
"""Share of a device's memory that whole gradients may take while a step accumulates them."""


def full_tensors(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Parameters by name, one at a time: whole, on the CPU, detached; split or not.

    All processes must go through the same names in the same order; each gets every tensor, but holds one at a time.
    """
    settle(model)
    have = dict(model.named_parameters())
    for name in names:
        yield name, whole(have[name]).detach().cpu().contiguous().clone()


def load_full(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into the parameters of these names; of a split one only this process's rows are read."""
    settle(model)
    have = dict(model.named_parameters())
    for name, tensor in tensors.items():
        fill(have[name], tensor)


def settle(model: nn.Module) -> None:
    """Leave only shards in memory, and DTensors as parameters, after calls without a backward pass."""
    for module in sharded_modules(model):
        module.reshard()


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules of ``model`` that gather parameters."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def shard(model: VLM, options: Parallel, device: torch.device, *, fill_unused: bool = False) -> Shards:
    """Split ``model`` in place over all processes; a collective call.

    Names, and shapes as ``p.shape`` gives them, stay as they are; parameters become DTensors.

    Args:
        model: on the CPU, with the trainable parameters chosen; numbers are kept, if it has any yet.
        options: ``run.parallel``.
        device: where this process computes.
        fill_unused: give a zero gradient to what some process does not use in a step, so that steps may differ.

    Raises:
        ConfigError: a parameter that trains has no dimension, or torch is too old for ``fill_unused``.
    """
    mesh = make_mesh(options, device)
    choice = choose(model, options, _free(device))
    _place_copies(model, choice, device)
    if scalars := [n for n, p in model.named_parameters() if p.requires_grad and p.dim() == 0]:
        raise ConfigError(
            f"run.parallel.shard={options.shard}: {scalars[0]} is a single number without a dimension, which cannot "
            "be split",
            fix="freeze it, or give it the shape [1]",
        )
    taken = {*choice.copied, *(p for p in model.parameters() if p.dim() == 0)}
    settings = {"mesh": mesh, **_offload(options)}
    for unit in choice.units:
        taken |= _shard_unit(unit, taken, settings)
    _fully_shard(model, taken, settings)
    if fill_unused:
        _fill_unused(model)
    model.even = choice.even
    model.split = result = Shards(model, mesh, device, [unit.module for unit in choice.units])
    _report(choice, options, mesh, result)
    return result


def load_spread(cfg: Any, device: torch.device, precision: Precision) -> VLM:
    """The model of a run, loaded, and split as ``run.parallel`` says.

    In shards, what starts at random is drawn in every process as process 0 draws it without.
    """
    # frozen weights are stored in the dtype of autocast, so that no step casts them again
    dtype, run = precision.amp_dtype or torch.float32, cfg.run
    if run.parallel.shard == "none":
        return load_model(cfg, device=device, dtype=dtype, training=True)

    def split(model: VLM) -> None:
        _check_rows(model, run)
        shard(model, run.parallel, device, fill_unused=run.find_unused_parameters)
        if model.even and run.feature_cache is not None:
            raise ConfigError(
                "run.feature_cache does not go with visual parts in shards, which all processes must call alike",
                fix="set run.parallel.frozen=replicate",
            )

    dist.seed_everything(run.seed, 0, run.deterministic)
    model = load_model(cfg, device=device, dtype=dtype, training=True, split=split)
    if dist.rank():
        dist.seed_everything(run.seed, dist.rank(), run.deterministic)
    return model


class Shards(Spread):
    """A model in shards; see :class:`Spread`."""

    alone = False

    def __init__(self, model: nn.Module, mesh: DeviceMesh, device: torch.device, units: Sequence[Any]) -> None:
        super().__init__(model)
        self.mesh = mesh
        self.device = device
        self.units = list(units)  # modules that gather their parameters when they are called
        self.root: Any = model  # gathers all others for the whole step
        trained = size_of([p for p in model.parameters() if p.requires_grad])
        self.holds_gradients = trained <= GRADIENTS * _total(device)
        self.keeps_gathered = False  # from a micro-batch to the next, and from forward to backward
        self.gathered = size_of([p for p in model.parameters() if is_split(p)])  # bytes of the whole ones

    def fits(self) -> bool:
        """See :class:`Spread`."""
        return not most(int(self.gathered > ROOM * _free(self.device)), self.device)

    def accumulate(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Context of one micro-batch: gradients are exchanged in the ``last`` one, where they can wait for it."""
        self.root.set_requires_gradient_sync(last or not self.holds_gradients)
        self.root.set_reshard_after_backward(last or not self.keeps_gathered)
        return contextlib.nullcontext()

    def stepped(self) -> None:
        """Keep what is gathered for a whole step, if it fits beside the activations."""
        self.keeps_gathered = self.fits()
        for unit in self.units:
            unit.set_reshard_after_forward(not self.keeps_gathered, recurse=False)
        kept = "kept through a step" if self.keeps_gathered else "given back after each layer"
        log.info("shards: gathered weights (%s) are %s: %s are free", mib(self.gathered), kept, mib(_free(self.device)))

    def total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Norm of all gradients together; each process has the squares of its rows."""
        norm = torch.nn.utils.get_total_norm([own(g) for g in gradients])
        square = norm.to(self.device, dist.sum_dtype(self.device)).square()
        torch.distributed.all_reduce(square, group=self.mesh.get_group("shard"))
        return square.sqrt()

    @contextlib.contextmanager
    def unsharded(self) -> Iterator[bool]:
        """See :class:`Spread`: everything is gathered, in every process."""
        fits = self.fits()
        model: Any = self.model
        before = model.split, model.even
        modules = sharded_modules(model)
        try:
            if fits:
                model.split, model.even = None, False
                for module in modules:
                    module.set_reshard_after_forward(False, recurse=False)
                    module.unshard()
            yield fits
        finally:
            model.split, model.even = before
            if fits:
                self.settle()
                for unit in self.units:
                    unit.set_reshard_after_forward(not self.keeps_gathered, recurse=False)

    def settle(self) -> None:
        """See :func:`settle`."""
        settle(self.model)

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """See :func:`full_tensors`."""
        return full_tensors(self.model, names)


def _shard_unit(unit: Unit, taken: set[nn.Parameter], settings: dict[str, Any]) -> set[nn.Parameter]:
    """Make ``unit`` gather its parameters and its guests'; returns the guests' new parameters.

    Guests are children of the module only meanwhile: their names stay those that they have elsewhere.
    """
    for number, guest in enumerate(unit.guests):
        unit.module.add_module(f"guest_{number}", guest)
    try:
        _fully_shard(unit.module, taken, settings)
    finally:
        for number in range(len(unit.guests)):
            del unit.module._modules[f"guest_{number}"]
    return {p for guest in unit.guests for p in guest.parameters()}


def _fully_shard(module: nn.Module, taken: set[nn.Parameter], settings: dict[str, Any]) -> None:
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, ignored_params=taken, **settings)


def _check_rows(model: VLM, run: RunConfig) -> None:
    """Raises ConfigError: the LLM runs samples of a packed row apart, so that processes call it unequally often."""
    if run.packing is not None and isinstance(model.llm, HFCausalLM) and not model.llm.packs:
        raise ConfigError(
            f"run.packing with run.parallel.shard={run.parallel.shard}: {type(model.llm.model).__name__} cannot share "
            "a row between samples, and processes with different numbers of samples would wait for one another",
            fix="set run.packing=null, or run.parallel.shard=none",
        )


def _offload(options: Parallel) -> dict[str, Any]:
    from torch.distributed.fsdp import CPUOffloadPolicy

    return {"offload_policy": CPUOffloadPolicy()} if options.offload == "cpu" else {}


def _place_copies(model: VLM, choice: Choice, device: torch.device) -> None:
    """Move to the device what is not split: copies, single numbers and buffers."""
    for parameter in [*choice.copied, *(p for p in model.parameters() if p.dim() == 0)]:
        parameter.data = parameter.data.to(device)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def _fill_unused(model: Any) -> None:
    from torch.distributed.fsdp import FSDPModule

    if "set_reduce_scatter_unused_params" not in vars(FSDPModule):
        raise ConfigError(
            f"run.find_unused_parameters with shards needs a newer torch than {torch.__version__}",
            fix="set it to false, or freeze what some steps do not use",
        )
    model.set_reduce_scatter_unused_params(True)


def _report(choice: Choice, options: Parallel, mesh: DeviceMesh, shards: Shards) -> None:
    mine = sum(own(p).numel() * p.element_size() for p in shards.model.parameters())
    for line in choice.reasons:
        log.info("shards: %s", line)
    log.info(
        "shards: %d in a group, %d groups; %d layers are gathered one by one; a process holds %s of %s",
        *(mesh.size(mesh.ndim - 1), options.replicate, len(choice.units)),
        *(mib(mine), mib(size_of(list(shards.model.parameters())))),
    )
    if not shards.holds_gradients:
        log.info("shards: whole gradients would take much memory, so they are exchanged after every micro-batch")


def _free(device: torch.device) -> int:
    return dist.free_bytes(device) // (machine_share() if device.type == "cpu" else 1)


def _total(device: torch.device) -> int:
    """Bytes of a process's device, or its share of the machine's memory."""
    if device.type == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // machine_share()
    return int(torch.get_device_module(device).get_device_properties(device).total_memory)
