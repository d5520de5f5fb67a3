"""Seeds and the choice of a dataset per step: pure functions, so that nothing has to be stored."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence


def derive_seed(*parts: str | int) -> int:
    """A 64-bit seed that depends on all parts and on nothing else (not on the process or its hash seed)."""
    text = "\0".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def draw_source(seed: int, step: int, weights: Sequence[float], purpose: str = "mix") -> int:
    """The dataset of a step (or sample): index drawn with probability proportional to ``weights``.

    The published mixing: every step draws one dataset and takes a whole batch of it. ``purpose`` keeps
    draws for different uses apart.
    """
    if len(weights) == 1:
        return 0
    return random.Random(derive_seed(seed, purpose, step)).choices(range(len(weights)), weights)[0]
