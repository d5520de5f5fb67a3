"""The standard benchmarks: one YAML and one module of pure functions each, over the original annotation files."""
