"""Reports of benchmarks: dated Markdown with the machine."""

import datetime
import os
import platform
from pathlib import Path

import jax

RESULTS = Path(__file__).parent / "results"


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
