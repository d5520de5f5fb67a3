"""A schedule: up to the peak at half of the run, and down again."""

from vlm import register_scheduler
from vlm.runners.train.schedule import Plan


@register_scheduler("triangle")
def triangle(step: int, plan: Plan) -> float:
    """The learning rate at ``step``; a pure function, so a resumed run needs no state."""
    middle = max(plan.total_steps / 2, 1)
    share = 1 - abs(step - middle) / middle
    return plan.min_lr + (plan.init_lr - plan.min_lr) * max(share, 0.0)
