"""Activation checkpointing of a list of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Checkpointed:
    """Stands in for a layer's ``forward``: recomputes it in the backward pass when gradients are recorded."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Like the layer's own ``forward``."""
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


def checkpoint_layers(layers: nn.ModuleList) -> None:
    """Recompute each layer in the backward pass, whether it is in train or eval mode; keys stay as they are.

    Frozen layers stay in eval mode, where transformers' own switch does nothing.
    """
    for layer in layers:
        layer.forward = Checkpointed(layer.forward)
