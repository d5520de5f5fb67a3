"""What a run will need, before anything is loaded: memory by part, FLOPs, time, disk; and what it needed afterwards."""
