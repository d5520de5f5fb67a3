"""Side-by-side measurements; run as modules, for example ``python -m benchmarks.train_step``."""
