"""What is exported: the composition without its weights in memory, and how each tensor of a folder is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.config.api import Config
from vlm.inference.hub.text import HubTokenizer
from vlm.inference.hub.weights import StoredWeights
from vlm.models.precision import parse_dtype
from vlm.processors.processor import Processor


@dataclass(frozen=True)
class Planned:
    """A tensor to write."""

    fact: Tensor  # its shape and dtype, on the device ``meta``
    make: Callable[[], Tensor]
    source: str = ""  # our name, if it is one tensor of the composition


@dataclass
class Contents:
    """Everything that a form of a folder is made of."""

    source: Path
    config: Config
    weights: StoredWeights
    processor: Processor
    dtype: torch.dtype
    notes: list[str] = field(default_factory=list)  # what the reader of the folder must know

    @property
    def model(self) -> Any:
        """The composition on the device ``meta``."""
        return self.weights.model

    @property
    def model_cfg(self) -> Any:
        """Its configuration."""
        return self.weights.model_cfg

    @cached_property
    def tokenizer(self) -> HubTokenizer:
        """The tokenizer as transformers reads it, with a token for an image."""
        return HubTokenizer(self.processor)

    @property
    def llm_config(self) -> Any:
        """The configuration of the LLM, of transformers."""
        return self.model.llm.model.config

    @property
    def image_tokens(self) -> int:
        """Positions of an image in the LLM's sequence."""
        return int(self.model.visual_tokens())

    @property
    def rows(self) -> int:
        """Rows of the token tables with one for the image token."""
        return int(max(self.model.llm.vocab_size, self.tokenizer.image_id + 1))

    def text_config(self, rows: int | None = None) -> Any:
        """The LLM's configuration for a table of ``rows`` tokens (None: as many as it has)."""
        options = self.llm_config.to_dict()
        for private in [key for key in options if key.startswith("_")]:
            del options[private]
        ids = self.processor.tokenizer
        options |= {"dtype": short(self.dtype), "vocab_size": rows or self.model.llm.vocab_size}
        options |= {"bos_token_id": ids.bos, "pad_token_id": ids.pad}
        config = type(self.llm_config)(**options)
        config.architectures = [type(self.model.llm.model).__name__]
        return config

    def direct(self, name: str) -> Planned:
        """The tensor ``name`` of the composition, in :attr:`dtype`."""
        return Planned(self.weights.facts[name].to(self.dtype), lambda: self.weights.read(name, self.dtype), name)

    def constant(self, value: Tensor) -> Planned:
        """A tensor that no file holds."""
        value = value.to(self.dtype)
        return Planned(value.to("meta"), lambda: value)

    def joined(self, names: Mapping[str, Tensor | None], shape: tuple[int, ...]) -> Planned:
        """Vectors one after the other; where a value is given in place of None, it stands for the tensor."""

        def make() -> Tensor:
            parts = [self.weights.read(n, self.dtype) if v is None else v.to(self.dtype) for n, v in names.items()]
            return torch.cat(parts).reshape(shape)

        return Planned(torch.empty(shape, dtype=self.dtype, device="meta"), make)

    def grown(self, name: str, rows: int) -> Planned:
        """A table of tokens with zero rows up to ``rows``."""
        fact = self.weights.facts[name]
        missing = rows - len(fact)
        if missing <= 0:
            return self.direct(name)

        def make() -> Tensor:
            table = self.weights.read(name, self.dtype)
            return torch.cat([table, table.new_zeros(missing, *table.shape[1:])])

        return Planned(torch.empty(rows, *fact.shape[1:], dtype=self.dtype, device="meta"), make, name)

    def llm_tensors(self, place: Callable[[str], str], rows: int, *, untied: bool = False) -> dict[str, Planned]:
        """The LLM's tensors; ``place`` turns a name of the transformers model into the name to write.

        A head that is tied to the embeddings is left out, unless the class is to have it ``untied``.
        """
        inner = self.model.llm.model
        tied = set() if untied else set(inner.all_tied_weights_keys or ())
        tables = token_tables(inner)
        result = {}
        for name in self.weights.facts:
            own = name.removeprefix("llm.model.")
            if own != name and own not in tied:
                result[place(own)] = self.grown(name, rows) if own in tables else self.direct(name)
        return result


def token_tables(model: Any) -> set[str]:
    """Names of the tensors with one row per token: embeddings, head, and the head's bias."""
    tables = {id(p) for m in (model.get_input_embeddings(), model.get_output_embeddings()) for p in m.parameters()}
    return {
        name.replace(".base_layer.", ".")
        for name, p in model.named_parameters(remove_duplicate=False)
        if id(p) in tables
    }


def short(dtype: torch.dtype) -> str:
    """The name of a dtype in a config.json."""
    return str(dtype).removeprefix("torch.")


def dtype_of(config: Config, asked: str | None) -> torch.dtype:
    """What the tensors are written in: ``asked``, else the dtype of the composition's LLM."""
    return parse_dtype(asked or config.model.llm.get("dtype") or "fp32")
