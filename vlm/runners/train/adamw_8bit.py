"""AdamW whose two running means are kept in 8 bits (arXiv:2110.02861), in plain torch operations.

It runs on every device and on parameters that ``fully_shard`` has split. Blocks of 256 values have a scale of their own
and never leave a row, so that a state that is split along the first axis has the same bits as the whole one, whatever
the number of processes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vlm.common.processes.shards import is_split, own

BLOCK = 256
LEAST = 4096  # values of a parameter below which its states stay in float32; those of vectors always do
CHUNK = 2**22  # values that are updated at a time: what is unpacked takes no more memory than that


@functools.cache
def levels(signed: bool) -> Tensor:
    """The 256 values ``[256]`` of a byte, ascending, within [-1, 1] or [0, 1].

    Each power of ten has half as many values as the next larger one; 0 and 1 are among them.
    """
    found = [0.0, 1.0]
    for i in range(7):
        bounds = torch.linspace(0.1, 1.0, 2 ** (i + (not signed)) + 1, dtype=torch.float64)
        middle = ((bounds[:-1] + bounds[1:]) / 2 * 10.0 ** (i - 6)).tolist()
        found += middle + ([-x for x in middle] if signed else [])
    return torch.tensor(sorted(found), dtype=torch.float32)


@functools.cache
def _nearest(signed: bool) -> Tensor:
    """``[65536]``: the byte nearest to each bfloat16 number, by its bits."""
    bits = torch.arange(2**16, dtype=torch.int32)
    numbers = torch.where(bits < 2**15, bits, bits - 2**16).to(torch.int16).view(torch.bfloat16).float()
    known = levels(signed)
    middle = (known[:-1] + known[1:]) / 2
    return torch.bucketize(numbers.nan_to_num(0.0).clamp(-1, 1), middle).to(torch.uint8)


@functools.cache
def _on(device: torch.device, signed: bool) -> tuple[Tensor, Tensor]:
    return levels(signed).to(device), _nearest(signed).to(device)


def pack(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """``values [rows, n]`` float32 -> bytes ``[rows, n]`` and scales ``[rows, ceil(n / 256)]``."""
    rows, width = values.shape
    count = -(-width // BLOCK)
    blocks = torch.nn.functional.pad(values, (0, count * BLOCK - width)).view(rows, count, BLOCK)
    scale = blocks.abs().amax(-1)
    bits = (blocks / scale.clamp_min(1e-38)[..., None]).bfloat16().view(torch.int16).int().bitwise_and_(0xFFFF)
    found = _on(values.device, signed)[1].index_select(0, bits.flatten())
    return found.view(rows, count * BLOCK)[:, :width], scale


def unpack(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """The inverse of :func:`pack`, as far as 8 bits go."""
    rows, width = codes.shape
    values = _on(codes.device, signed)[0].index_select(0, codes.flatten().int()).view(rows, width)
    return values.mul_(scale.repeat_interleave(BLOCK, 1)[:, :width])


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with 2.03 bytes of state per value of a matrix instead of 8; vectors and small matrices keep float32.

    Args:
        groups: parameters, float32.
        lr: learning rate.
        betas: of the running means.
        eps: added to the root of the second mean.
        weight_decay: where a group states none.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.register_load_state_dict_post_hook(_restore_bytes)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state |= _new_state(parameter)
        state["step"] += 1
        states = {name: own(value) for name, value in state.items() if name != "step"}
        grad: Any = parameter.grad
        values, grads, step = own(parameter), own(grad), float(state["step"])
        if "exp_avg_scale" not in states:
            _adamw(values, grads.float(), states, step, group)
            return
        values, grads = values.flatten(1), grads.flatten(1)
        states = {name: value.flatten(1) for name, value in states.items()}
        count = max(1, CHUNK // max(values.shape[1], 1))
        for first in range(0, len(values), count):
            part = slice(first, first + count)
            some = {name: value[part] for name, value in states.items()}
            _adamw(values[part], grads[part].float(), some, step, group)


def _adamw(values: Tensor, grad: Tensor, state: dict[str, Tensor], step: float, group: dict[str, Any]) -> None:
    """One step of ``values``, rows ``[rows, n]`` where the state is short; in place."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    short = "exp_avg_scale" in state
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    if short:
        mean = unpack(mean, state["exp_avg_scale"], True)
        square = unpack(square, state["exp_avg_sq_scale"], False)
    mean.lerp_(grad, 1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    values.mul_(1 - lr * group["weight_decay"])
    root = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    values.addcdiv_(mean, root, value=-lr / (1 - beta1**step))
    if short:
        for name, value, signed in (("exp_avg", mean, True), ("exp_avg_sq", square, False)):
            codes, scale = pack(value, signed)
            state[name].copy_(codes)
            state[f"{name}_scale"].copy_(scale)


def _new_state(parameter: Tensor) -> dict[str, Tensor]:
    """Zeros, split over the processes as ``parameter`` is."""
    step, local = torch.zeros((), dtype=torch.float32), own(parameter)
    # of the whole parameter, so that the choice does not depend on the number of processes
    if parameter.numel() < LEAST or parameter.dim() < 2 or not _in_rows(parameter):
        return {"step": step, **{name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}}
    state = {"step": step}
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        codes, scale = pack(torch.zeros_like(local).flatten(1), signed)
        state[name] = _like(parameter, codes.reshape(local.shape), parameter.shape)
        state[f"{name}_scale"] = _like(parameter, scale, torch.Size((len(parameter), scale.shape[1])))
    return state


def _in_rows(parameter: Tensor) -> bool:
    """Whether every row is in one place: contiguous, and split along the first axis if at all."""
    whole: Any = parameter
    placements = whole.placements if is_split(parameter) else ()
    return own(parameter).is_contiguous() and all(p.is_replicate() or p.is_shard(0) for p in placements)


def _like(parameter: Tensor, local: Tensor, shape: torch.Size) -> Tensor:
    """``local`` as the part of a tensor of ``shape`` that is split as ``parameter`` is."""
    local = local.contiguous()
    if not is_split(parameter):
        return local
    from torch.distributed.tensor import DTensor  # importing it takes long

    split: Any = parameter
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = split.device_mesh, split.placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def _restore_bytes(optimizer: torch.optim.Optimizer) -> None:
    """torch loads states in the dtype of their parameter, which holds 0 to 255 exactly."""
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            if f"{name}_scale" in state:
                state[name] = state[name].to(torch.uint8)
