"""`gnp-scale drill`."""

import argparse
from collections.abc import Sequence
from typing import Any

from gnp_scale.arguments import at_least
from gnp_scale.checks import local_path
from gnp_scale.commands.common import default_run_dir, import_jax
from gnp_scale.run.store import store_folder


def add(commands: Any) -> None:
    """Adds the command to the parsers `commands`."""
    drill = commands.add_parser("drill", help="kill runs of a recipe at random, and compare", allow_abbrev=False)
    drill.add_argument("recipe", metavar="RECIPE", help="FILE:FUNCTION (flags of train may follow)")
    drill.add_argument("--run-dir", help="a new folder for all of its runs (default: runs/drill-RECIPE)")
    drill.add_argument("--store", help="gs:// or s3:// folder for the runs; their logs stay in --run-dir")
    drill.add_argument("--num-kills", type=at_least(1), default=10, help="in total (default: %(default)s)")
    drill.add_argument("--num-processes", type=at_least(1), nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    drill.add_argument(
        "--num-devices", type=at_least(1), default=4, help="CPU devices, over all processes (default: 4)"
    )
    drill.add_argument("--seed", type=at_least(0), default=0, help="seed of the kills (default: %(default)s)")
    drill.add_argument(
        "--timeout-s",
        type=at_least(1),
        default=300,
        help="in which each start of a run must end (default: %(default)s)",
    )
    drill.set_defaults(command=_drill, takes_flags=True)


def _drill(options: argparse.Namespace, flags: Sequence[str]) -> int:
    default = default_run_dir(options, "drill-")
    folder = default if options.run_dir is None else local_path("--run-dir", options.run_dir)
    import_jax()
    from gnp_scale.chaos.drill import drill
    from gnp_scale.run import processes

    processes.check_alone()
    counts = options.num_processes, options.num_kills, options.num_devices
    store = None if options.store is None else store_folder("--store", options.store)
    return drill([options.recipe, *flags], folder, *counts, options.seed, options.timeout_s, store)
