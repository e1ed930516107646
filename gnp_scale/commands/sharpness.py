"""The command `gnp-scale sharpness`."""

import argparse
from collections.abc import Sequence
from typing import Any

from gnp_scale.arguments import at_least
from gnp_scale.checks import local_path
from gnp_scale.commands.common import config_of_run, existing_run, import_jax
from gnp_scale.exit_codes import Exit
from gnp_scale.sharpness.settings import DEFAULT_MEASURES, MEASURES, Settings

_NUMBERS = {
    "examples": ("num_examples", 1, "training examples of the loss"),
    "group": ("group_size", 1, "examples of a group of m-sharpness"),
    "eigenvalues": ("num_eigenvalues", 1, "how many eigenvalues of the Hessian"),
    "lanczos-steps": ("num_lanczos_steps", 1, "products with the Hessian for the eigenvalues"),
    "vectors": ("num_vectors", 2, "products with the Hessian for the trace"),
    "grid": ("grid_size", 2, "steps along each direction of a plane"),
    "seed": ("seed", 0, "of the examples, directions, vectors and corruptions"),
}
"""Options that are whole numbers: the field of `Settings`, the lowest value, the help."""
_OPTIONS = ("measure", "radii", *_NUMBERS, "output", "average", "to")


def add(commands: Any) -> None:
    """Adds the command to the parsers `commands`."""
    default = Settings()
    parser = commands.add_parser(
        "sharpness", help="how flat the minimum of a run is, and how robust its network", allow_abbrev=False
    )
    parser.add_argument("run_dir", metavar="RUN", help="folder of the run (flags of data and mesh may follow)")
    parser.add_argument("--output", metavar="FOLDER", help="write numbers, pictures and TensorBoard events there")
    parser.add_argument(
        "--average", metavar="N", type=at_least(1), help="measure the average of the last N checkpoints"
    )
    words = ",".join(MEASURES)
    parser.add_argument(
        "--measure",
        metavar="PARTS",
        type=_words,
        help=f"some of {words} (default: all but trajectory; with --to, none)",
    )
    parser.add_argument("--to", metavar="RUN2", help="measure the line from RUN to this run of the same network")
    radii = ",".join(map(str, default.radii))
    parser.add_argument("--radii", type=_numbers, default=default.radii, help=f"of the ascent ({radii})")
    for option, (name, lowest, text) in _NUMBERS.items():
        value = getattr(default, name)
        parser.add_argument(
            f"--{option}", dest=name, metavar="N", type=at_least(lowest), default=value, help=f"{text} ({value})"
        )
    parser.set_defaults(command=_sharpness, takes_flags=True)


def _sharpness(options: argparse.Namespace, flags: Sequence[str]) -> int:
    numbers = {name: getattr(options, name) for name, *_ in _NUMBERS.values()}
    measures = options.measure or (DEFAULT_MEASURES if options.to is None else ())
    settings = Settings(measures=measures, radii=options.radii, **numbers)
    run_dir = existing_run(options.run_dir)
    other_dir = None if options.to is None else existing_run(options.to, "--to")
    output = None if options.output is None else local_path("--output", options.output)
    import_jax()
    from gnp_scale.run import processes

    others = [f"--{name}" for name in _OPTIONS]
    config = config_of_run(run_dir, flags, "sharpness", "[--measure PARTS] [--output FOLDER]", others)
    processes.start()
    processes.check_devices()
    from gnp_scale.sharpness import report
    from gnp_scale.sharpness.measure import measure_run

    found = measure_run(config, run_dir, settings, output, options.average, other_dir)
    if processes.is_main_process():
        print("\n".join(report.lines(found, settings)), flush=True)
        if output is not None:
            report.write(output, options.run_dir, found, settings, options.to)
    return Exit.FINISHED


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


# In the message of a parser: "invalid numbers value".
_numbers.__name__ = "numbers"
