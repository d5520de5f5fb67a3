"""The section ``run.serving``: how an engine answers many questions at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vlm.common.bounds import Count, Natural


def _option(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True)
class Serving:
    """Limits and switches of an engine. None of them changes an answer, only speed and memory.

    Example: ``vlm serve output/mine --options run.serving.max_batch=16 run.serving.lookup=8``
    """

    max_batch: Count = _option(32, "answers written at the same time")
    queue: Natural = _option(1024, "questions that wait at most; further ones are refused (0: no limit)")
    prefill: Count = _option(512, "prompt positions read in one step, so that a long prompt does not stall the others")
    block: Count = _option(64, "positions read together and kept together in the prefix cache")
    kv_mib: Natural | None = _option(
        None, "MiB for keys and values of the answers being written; null: a quarter of the free memory, 0: no limit"
    )
    prefix_mib: Natural = _option(1024, "MiB for keys and values of prompts that may come again (0: off)")
    feature_mib: Natural = _option(512, "MiB for visual features of recent images (0: off)")
    lookup: Natural = _option(0, "tokens of a greedy answer guessed at a time from what was read and written (0: off)")
    compile: bool = _option(False, "torch.compile the decoder's layers")
