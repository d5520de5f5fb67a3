"""The language model of a GGUF file, dequantised tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.formats.hf_llm import HFFolder
from vlm.checkpoint.formats.published import Made
from vlm.checkpoint.strict import NamedTensors
from vlm.common.registry import register_checkpoint_format
from vlm.models.llm.gguf import checked, plan
from vlm.models.vlm import VLM


@register_checkpoint_format("gguf")
class GGUFLanguageModel(HFFolder):
    """Fills ``llm.model``, except LoRA, from a GGUF file of llama.cpp; one tensor is in memory at a time."""

    def read(self, path: Path) -> dict[str, Tensor]:
        """Names and shapes (device ``meta``) of the file's tensors. Raises WeightsError: damaged, or unknown types."""
        self.header = checked(path)
        return {name: torch.empty(t.shape, device="meta") for name, t in self.header.tensors.items()}

    def rename(self, model: VLM, tensors: Mapping[str, Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        """See :class:`CheckpointFormat`; the tensors are read when they are copied."""
        steps, strangers = plan(self.header, model.llm.model.config)
        facts: dict[str, Tensor] = {}
        names: dict[str, str] = {}
        makers: dict[str, Callable[[], Tensor]] = {}
        for step in steps:
            made = Made(step.make, len(step.shapes))
            for name, shape in step.shapes.items():
                facts[name], names[name] = torch.empty(shape, device="meta"), step.name
                makers[name] = partial(made.take, name)
        result = self.place(model, facts, names, file, makers)
        return dataclasses.replace(result, unknown=strangers)
