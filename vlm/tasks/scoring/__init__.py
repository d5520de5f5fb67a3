"""Metrics as pure functions of texts and numbers, without a model and without Java."""

from vlm.tasks.scoring import bleu as bleu  # stored metrics name the totals of both
from vlm.tasks.scoring import meteor as meteor
