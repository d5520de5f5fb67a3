"""From datasets to batches: sampling, mixing, workers, batching, resume."""
