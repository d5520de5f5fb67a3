"""What a training step is and what a benchmark is; one file per task."""
