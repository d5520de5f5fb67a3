"""An engine over a composition of any size with random weights, asked with ready token ids."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.common import TextRow
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example
from vlm.config.run import Serving
from vlm.inference.engine import Engine
from vlm.models.vlm import VLM
from vlm.processors.templates.roles import Template


class Ids:
    """A tokenizer whose text is the ids themselves, and which ends no answer."""

    eos: int | None = None
    bos = 1
    pad = 0

    def encode(self, text: str, **_: Any) -> list[int]:
        """Ids of a text of ids."""
        return [int(word) for word in text.split() if word.isdigit()]

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """The ids as text."""
        return "".join(f"{i} " for i in ids)

    def stream(self) -> Any:
        """A decoder for ids that arrive one by one."""
        return SimpleNamespace(push=lambda i: f"{i} ", flush=str)


def engine_of(model: VLM, device: str | torch.device = "cpu", **serving: Any) -> Engine:
    """An engine that answers ``Example`` questions of ids and pixels."""
    template = Template(Template.Config(stop=[], truncate_at=[], strip_before=[]))
    processor: Any = SimpleNamespace(tokenizer=Ids(), template=template)
    return Engine(model, processor, device=device, serving=Serving(**serving))


def question(row: TextRow, pixels: torch.Tensor) -> Example:
    """The prompt of a row with one image ``[1, 3, h, w]``."""
    ids = [*row.before, MEDIA_TOKEN, *row.after, *row.answer]
    return Example(ids, [IGNORE_INDEX] * len(ids), [pixels])
