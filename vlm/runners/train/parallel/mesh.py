"""``run.parallel``: whether it can work here, and the processes as a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vlm.common.errors import ConfigError
from vlm.config.run import Parallel, RunConfig

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def check_parallel(run: RunConfig, llm: Any, processes: int, device: torch.device) -> None:
    """Check ``run.parallel`` before anything is loaded.

    Args:
        run: the section ``run``.
        llm: the options of ``model.llm``.
        processes: of the run.
        device: of this process.

    Raises:
        ConfigError: something cannot work; one message says what, and what to set.
    """
    options = run.parallel
    if options.shard == "none":
        _check_copies(options)
        return
    name = f"run.parallel.shard={options.shard}"
    if processes == 1:
        raise ConfigError(
            f"{name} splits the model over several processes, but this run has one",
            fix="start it with torchrun --nproc-per-node N, or set run.parallel.shard=none",
        )
    _check_grid(options.replicate, processes)
    if options.offload == "cpu" and device.type == "cpu":
        raise ConfigError(
            "run.parallel.offload=cpu moves shards from an accelerator to host memory, but this run computes on a CPU",
            fix="set run.parallel.offload=none",
        )
    if options.offload == "cpu" and run.amp and run.amp_dtype == "fp16":
        raise ConfigError(
            "run.parallel.offload=cpu does not go with run.amp_dtype=fp16, whose scaler needs gradients on the device",
            fix="set run.amp_dtype=bf16",
        )
    if options.shard == "llm" and options.frozen == "shard":
        raise ConfigError(
            "run.parallel.frozen=shard splits frozen parts beside the LLM, which run.parallel.shard=llm leaves whole",
            fix="set run.parallel.shard=all",
        )
    if run.activation_checkpointing.startswith("fairscale"):
        raise ConfigError(
            f"run.activation_checkpointing={run.activation_checkpointing} does not go with {name}",
            fix="set run.activation_checkpointing=torch",
        )
    if run.compile:
        raise ConfigError(
            f"run.compile does not go with {name}: blocks that gather their weights are not compiled",
            fix="set run.compile=false",
        )
    if run.broadcast_buffers:
        raise ConfigError(
            f"run.broadcast_buffers is about copies of a model and does not go with {name}", fix="set it to false"
        )
    check_quantised(llm, name)


def check_quantised(llm: Any, name: str) -> None:
    """Raises ConfigError: ``model.llm`` is quantised in a form that cannot be split; ``name`` is the option."""
    found = vars(llm).get("quantize")
    if found not in (None, "nf4", "int8"):
        raise ConfigError(
            f"model.llm.quantize={found} does not go with {name}: it is a storage for answers, not in rows",
            fix="set model.llm.quantize=nf4, int8 or null, or run.parallel.shard=none",
        )


def _check_copies(options: Parallel) -> None:
    """Raises ConfigError: an option that is about shards, where there are none."""
    given = {"replicate": options.replicate != 1, "offload": options.offload != "none"}
    given["frozen"] = options.frozen == "shard"
    for name, odd in given.items():
        if odd:
            raise ConfigError(
                f"run.parallel.{name}={vars(options)[name]} is about shards, but run.parallel.shard is none",
                fix="set run.parallel.shard=llm or all",
            )


def _check_grid(replicate: int, processes: int) -> None:
    if processes % replicate or replicate == processes:
        allowed = [str(n) for n in range(1, processes) if processes % n == 0]
        raise ConfigError(
            f"run.parallel.replicate={replicate} does not divide {processes} processes into groups of several",
            fix=f"with {processes} processes it can be {', '.join(allowed)}",
        )


def make_mesh(options: Parallel, device: torch.device) -> DeviceMesh:
    """The processes as ``[shard]``, or ``[replicate, shard]``; neighbours in rank hold shards of one model."""
    from torch.distributed.device_mesh import init_device_mesh

    processes = torch.distributed.get_world_size()
    if options.replicate == 1:
        return init_device_mesh(device.type, (processes,), mesh_dim_names=("shard",))
    shape = (options.replicate, processes // options.replicate)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
