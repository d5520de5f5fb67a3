"""What a step is and what a benchmark is; one file per task."""
