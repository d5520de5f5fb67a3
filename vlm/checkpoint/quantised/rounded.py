"""The matrices of an LLM after quantisation and back: those that LoRA was trained around, for merging into them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vlm.models.llm.hf import HFCausalLM
from vlm.models.quantized.layers import KINDS
from vlm.models.quantized.options import QuantizeOptions
from vlm.models.quantized.place import choose


class RoundedBase:
    """Quantises matrices and makes them again, one at a time.

    Args:
        llm: an ``HFCausalLM``, on any device, ``meta`` too.
        mode: ``nf4`` or ``int8``.
        options: as for training.
        root: the module in which the names of matrices begin.

    Attributes:
        errors: name of a matrix that went through -> how far it moved, as a share of its norm.

    Raises:
        ConfigError: see :func:`choose`.
    """

    def __init__(self, llm: HFCausalLM, mode: str, options: QuantizeOptions, root: nn.Module) -> None:
        self.mode, self._options = mode, options
        names = {id(module): name.replace(".base_layer", "") for name, module in root.named_modules()}
        places = choose(llm, mode, options)
        self.names = {f"{names[id(getattr(parent, to))]}.weight" for parent, to, _ in places}
        self.errors: dict[str, float] = {}

    def through(self, name: str, weight: Tensor) -> Tensor:
        """``weight [out, in]`` there and back, in float32; as it is if it is none that is quantised."""
        if name not in self.names:
            return weight
        shape = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer = KINDS[self.mode](shape, self._options, torch.device("cpu"))
        full = weight.detach().float()
        layer.fill(full)
        made = layer.dense(torch.float32)
        self.errors[name] = float((made - full).norm() / full.norm().clamp_min(torch.finfo(torch.float32).tiny))
        return made

    def line(self) -> str:
        """What is different from a merge into the full weights, in numbers."""
        worst = max(self.errors, key=lambda name: self.errors[name])
        mean = sum(self.errors.values()) / len(self.errors)
        return (
            f"merged into the weights after {self.mode} and back: {len(self.errors)} matrices, which differ from the "
            f"full ones by {mean:.2%} of their norm (at most {self.errors[worst]:.2%}, {worst})"
        )


def rounded_folder(folder: Path, mode: str) -> RoundedBase:
    """For the tensors of a Hugging Face folder, by their names in it. Raises UserError: it holds no such LLM."""
    with torch.device("meta"):
        llm = HFCausalLM(HFCausalLM.Config(path=str(folder)))
    return RoundedBase(llm, mode, QuantizeOptions(), llm.model)
