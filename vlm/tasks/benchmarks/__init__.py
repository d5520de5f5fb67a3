"""Benchmarks: one file each, registered with ``@register_benchmark("name")``."""
