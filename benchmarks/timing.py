"""Timing side by side: the machines are noisy and shared, so only ratios within one run mean anything."""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


def interleave(functions: Mapping[str, Callable[[], Any]], num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, until its arrays are computed; a first round is not measured."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(num_rounds + 1):
        for name, function in functions.items():
            start_s = time.perf_counter()
            jax.block_until_ready(function())
            if round_number > 0:
                seconds[name].append(time.perf_counter() - start_s)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> str:
    """Median over the rounds of the ratio of two functions, with its quartiles."""
    ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def machine() -> str:
    """The machine in words."""
    devices = jax.devices()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    cores = f"{os.cpu_count()} cores of {model}, load averages {load}"
    return f"{cores}; JAX {jax.__version__} on {devices[0].device_kind}"


def write_report(name: str, title: str, lines: list[str]) -> Path:
    """Writes and prints `results/DATE-name.md`, with the machine and the time."""
    now = datetime.datetime.now(datetime.UTC)
    text = "\n".join([f"# {title}", "", f"{now:%Y-%m-%d %H:%M} UTC. {machine()}.", "", *lines, ""])
    path = RESULTS / f"{now:%Y-%m-%d}-{name}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    print(text)
    return path
