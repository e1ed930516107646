"""`gnp-scale bench`."""

import argparse
from collections.abc import Sequence
from typing import Any

from gnp_scale.arguments import at_least
from gnp_scale.commands.common import import_jax
from gnp_scale.exit_codes import Exit


def add(commands: Any) -> None:
    """Adds the commands to the parsers `commands`."""
    bench = commands.add_parser("bench", help="measure this machine").add_subparsers(required=True, metavar="COMMAND")
    kernels = bench.add_parser("kernels", help="check the kernels, time them against XLA, and find their best blocks")
    kernels.add_argument("--model", default="vit_b", help="network whose parameters are used (default: %(default)s)")
    kernels.add_argument("--rounds", type=at_least(2), default=20, help="calls that are timed (default: %(default)s)")
    kernels.add_argument("--no-tuning", action="store_true", help="do not search for better block sizes")
    kernels.set_defaults(command=_bench_kernels, takes_flags=False)


def _bench_kernels(options: argparse.Namespace, flags: Sequence[str]) -> int:
    import_jax()
    from gnp_scale.run import processes

    processes.start()
    processes.check_devices()
    from gnp_scale.bench import bench_kernels

    bench_kernels(options.model, options.rounds, tune=not options.no_tuning)
    return Exit.FINISHED
