"""An optimiser: steps along the sign of a running mean (arXiv:2302.06675), with one state a value."""

from typing import Any

import torch

from vlm import register_optimizer


class Lion(torch.optim.Optimizer):
    """Its state holds only tensors, so that a checkpoint can store it."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for parameter in (p for p in group["params"] if p.grad is not None):
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.sub_(mean.lerp(parameter.grad, 1 - beta1).sign_(), alpha=lr)
                mean.lerp_(parameter.grad, 1 - beta2)


@register_optimizer("lion")
def lion(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], device: torch.device) -> Lion:
    """Lion over the run's groups of parameters."""
    return Lion(groups, lr, betas)
