"""A step of a finished or broken run again: its samples, its loss, its gradient."""
