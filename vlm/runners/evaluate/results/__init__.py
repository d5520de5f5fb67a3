"""Results of evaluations that were written before: compared, and put together."""
