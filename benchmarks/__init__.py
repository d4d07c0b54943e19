"""Benchmarks: programs that measure ratios, alternated in one run; results in `results/`."""
