"""Benchmarks: every model fast against plain, in one run, as ratios. `python -m benchmarks`, from the checkout."""
