"""Interleaved timing: machines are noisy and shared, so only ratios within one run are meaningful."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def interleave[Name](functions: Mapping[Name, Callable[[], Any]], num_rounds: int) -> dict[Name, list[float]]:
    """Seconds of each call, until its arrays are computed; a first round is not measured."""
    seconds: dict[Name, list[float]] = {name: [] for name in functions}
    for round_number in range(num_rounds + 1):
        for name, function in functions.items():
            start_s = time.perf_counter()
            jax.block_until_ready(function())
            if round_number > 0:
                seconds[name].append(time.perf_counter() - start_s)
    return seconds


def ratio[Name](seconds: Mapping[Name, list[float]], name: Name, base: Name) -> str:
    """Median over the rounds of the ratio of two functions, with its quartiles."""
    ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return f"{median:.2f} ({low:.2f} to {high:.2f})"
