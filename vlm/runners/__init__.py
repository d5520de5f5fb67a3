"""Training and evaluation runs: step loop, schedules, optimiser, processes, trackers, report."""
