"""``run.compile``."""

from __future__ import annotations

from torch import nn


def compile_model(model: nn.Module) -> None:
    """Compile ``model`` in place; before it is sharded or wrapped."""
    model.compile()
