"""Records on disk to samples, and samples to batches."""
