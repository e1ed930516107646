"""Measurements, each run as `python -m benchmarks.NAME`; dated results are in `results/`."""
