"""Metrics as pure functions of texts and numbers, without a model and without Java.

Modules that add totals are imported here, so that rows in a file find theirs.
"""

from vlm.tasks.scoring import yes_no as yes_no
