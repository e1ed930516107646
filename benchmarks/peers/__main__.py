"""Compares the project's steps with those that a user would otherwise run: `make bench-peers`.

Command: python -m benchmarks.peers [--targets v5e v5p h100] [--dtypes bfloat16] [--rounds N] [--torch-python PYTHON]
"""

import argparse
from collections.abc import Iterator
from typing import get_args

from benchmarks.hardware import Dtype
from benchmarks.peers import clock
from benchmarks.peers.compiled import BATCH_SIZE, MODELS, TARGETS, Figures, figures
from benchmarks.timing import write_report

SETTING = f"""\
The peer is the same network in Flax Linen, with Linen's layers and optax (`benchmarks/peers/linen.py`; tests compare
parameters, FLOPs and updates). The project's steps also check that every number is finite, and report the norms of
gradient, update and parameters.

## By the compiler

One device, 224 x 224 images, batch {BATCH_SIZE}. Norms, perturbation and update are XLA's; attention is by Pallas
kernels on TPUs and by cuDNN on GPUs, where these take it. ViT-B/16 has AdamW and clipping by global norm, ResNet-50 has
SGD with momentum. Cycles are estimates of the TPU compiler. Bytes are those that the programs read and write.
Nothing here was measured on a device. Ratios are relative to the peer's plain step.
"""


def main() -> None:
    """Compiles and times the steps, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="*", default=TARGETS, choices=TARGETS)
    parser.add_argument("--dtypes", nargs="*", default=get_args(Dtype), choices=get_args(Dtype))
    parser.add_argument("--rounds", type=int, default=9, help="0: nothing is timed")
    parser.add_argument("--torch-python", help="an interpreter with PyTorch")
    args = parser.parse_args()
    lines = [SETTING, COMPILED_HEADER]
    for target in args.targets:
        for dtype in args.dtypes:
            for model in MODELS:
                lines += compiled_rows(target, model, dtype)
    if args.rounds:
        size = clock.IMAGE_SIZE
        lines += [
            f"\n## By the clock\n\nCPU, {size} x {size} images, batch {clock.BATCH_SIZE}, {args.rounds} rounds.\n"
        ]
        lines += [clock.HEADER, *clock.rows(args.rounds, args.torch_python)]
    write_report("peers", "A step beside the peers'", lines)


COMPILED_HEADER = """\
| target | model | type | step | cycles | bytes | temporary memory | kernels |
|---|---|---|---|---|---|---|---|"""


def compiled_rows(target: str, model: str, dtype: Dtype) -> Iterator[str]:
    """One row of Markdown a step."""
    found = dict(figures(target, model, dtype))
    peer = found["peer"]
    for step, own in found.items():
        cycles = "" if own.cycles is None else _cell(own.cycles / 1e6, " M", own.cycles / (peer.cycles or 1))
        yield (
            f"| {target} | {model} | {dtype} | {step} | {cycles} | {_gigabytes(own, peer, 'num_bytes')} | "
            f"{_gigabytes(own, peer, 'temporary_bytes')} | {own.num_kernels} |"
        )


def _gigabytes(own: Figures, peer: Figures, name: str) -> str:
    value = getattr(own, name)
    return _cell(value / 1e9, " GB", value / getattr(peer, name))


def _cell(value: float, unit: str, ratio: float) -> str:
    return f"{value:.2f}{unit} ({ratio:.2f})"


if __name__ == "__main__":
    main()
