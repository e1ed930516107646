"""`gnp-scale bench`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnp_scale.arguments import at_least
from gnp_scale.checks import check, local_path
from gnp_scale.commands.common import import_jax, on_cpu
from gnp_scale.exit_codes import Exit
from gnp_scale.resilience.preemption import StopRequest
from gnp_scale.resilience.signals import ends_at_a_signal

if TYPE_CHECKING:
    from gnp_scale.evidence.plan import Plan

_TABLES = (
    "noise40",
    "noise60",
    "clean",
    "photographs",
    "photographs-squares",
    "photographs-noise40",
    "transformer",
    "groups",
)


def add(commands: Any) -> None:
    """Adds the commands to the parsers `commands`."""
    bench = commands.add_parser("bench", help="measure this machine").add_subparsers(required=True, metavar="COMMAND")
    kernels = bench.add_parser("kernels", help="check the kernels, time them against XLA, and find their best blocks")
    kernels.add_argument("--model", default="vit_b", help="network whose parameters are used (default: %(default)s)")
    kernels.add_argument("--rounds", type=at_least(2), default=20, help="calls that are timed (default: %(default)s)")
    kernels.add_argument("--no-tuning", action="store_true", help="do not search for better block sizes")
    kernels.set_defaults(command=_bench_kernels, takes_flags=False)
    _add_generalization(bench)


def _add_generalization(bench: Any) -> None:
    parser = bench.add_parser(
        "generalization", help="compare the method with others, by test accuracy and compute", allow_abbrev=False
    )
    parser.add_argument("table", metavar="TABLE", choices=_TABLES, help=f"{', '.join(_TABLES)} (docs/evidence.md)")
    parser.add_argument("--out", help="folder of the runs and their report (default: runs/evidence-TABLE)")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="train these methods only")
    parser.add_argument("--seeds", type=at_least(1), default=5, help="runs of the report (default: %(default)s)")
    parser.add_argument("--tuning-seeds", type=at_least(1), default=1, help="runs at each point (default: %(default)s)")
    parser.add_argument("--steps", type=at_least(30), help="of plain training, a multiple of 15 (default: the table's)")
    parser.add_argument("--jobs", type=at_least(1), default=1, help="methods at a time (default: %(default)s)")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--again", action="store_true", help="first remove the runs of the methods of --only")
    ways.add_argument("--report", action="store_true", help="only write the report on what there is")
    ways.add_argument("--sharpness", action="store_true", help="only measure the minima of the runs that are finished")
    ways.add_argument("--row", metavar="METHOD", help="train this method in this process, without a report")
    ways.add_argument("--check", metavar="METHOD", help="only check that this method can be trained on this machine")
    parser.set_defaults(command=_bench_generalization, takes_flags=True)


def _bench_kernels(options: argparse.Namespace, flags: Sequence[str]) -> int:
    import_jax()
    from gnp_scale.run import processes

    processes.start()
    processes.check_devices()
    from gnp_scale.bench import bench_kernels

    bench_kernels(options.model, options.rounds, tune=not options.no_tuning)
    return Exit.FINISHED


def _bench_generalization(options: argparse.Namespace, flags: Sequence[str]) -> int:
    folder = local_path("--out", options.out or f"runs/evidence-{options.table}")
    if options.row is not None or options.check is not None:
        return _train_row(options, flags, folder)
    check(not options.again or bool(options.only), "--again removes runs: name their methods with --only")
    if options.sharpness:
        return _measure_minima(options, flags, folder)
    return _compare(options, flags, folder)


@ends_at_a_signal()
def _compare(options: argparse.Namespace, flags: Sequence[str], folder: Path) -> int:
    """Trains what is not finished, each method in a process of its own, and reports; or only reports."""
    on_cpu()
    from gnp_scale.evidence.plan import checked_names
    from gnp_scale.evidence.run import check_all, check_apart, forget, report_on, rows_of, run_all
    from gnp_scale.run import processes

    plan = _plan(options, flags)
    rows, names = rows_of(plan, folder), checked_names(options.only, plan.table)
    if options.report:
        has_runs = any((folder / name).is_dir() for name in rows)
        check(has_runs, f"there are no runs in {folder}: give the --out of a benchmark, or leave out --report")
        print(report_on(rows), end="")
        return Exit.FINISHED
    processes.check_alone()
    arguments = ["bench", "generalization", options.table, "--out", str(folder), "--steps", str(plan.num_steps)]
    arguments += ["--seeds", str(options.seeds), "--tuning-seeds", str(options.tuning_seeds), *flags]
    # Nothing is removed by a command that is refused.
    check_all(rows, forgotten=names if options.again else ())
    if options.again:
        code = check_apart(names, arguments)
        if code != Exit.FINISHED:
            return code
        forget([rows[name] for name in names])
    return run_all(rows, names, arguments, options.jobs)


def _plan(options: argparse.Namespace, flags: Sequence[str]) -> "Plan":
    from gnp_scale.evidence.plan import Plan
    from gnp_scale.evidence.tables import NUM_EVALUATIONS, TABLES

    table = TABLES[options.table]
    num_steps = options.steps or table.num_steps
    below = num_steps // NUM_EVALUATIONS * NUM_EVALUATIONS
    check(
        below == num_steps,
        f"{num_steps} steps do not divide over the {NUM_EVALUATIONS} evaluations of a run: give --steps {below} or "
        f"{below + NUM_EVALUATIONS}",
    )
    return Plan(table, options.seeds, options.tuning_seeds, num_steps, tuple(flags))


def _measure_minima(options: argparse.Namespace, flags: Sequence[str], folder: Path) -> int:
    import_jax()
    from gnp_scale.evidence import minima
    from gnp_scale.evidence.plan import checked_names
    from gnp_scale.evidence.run import rows_of
    from gnp_scale.run import processes

    plan = _plan(options, flags)
    names = checked_names(options.only, plan.table)
    processes.start()
    processes.check_devices()
    rows = rows_of(plan, folder)
    minima.measure_all([rows[name] for name in names])
    text = minima.report_on(list(rows.values()))
    if processes.is_main_process():
        print(text, end="")
    return Exit.FINISHED


def _train_row(options: argparse.Namespace, flags: Sequence[str], folder: Path) -> int:
    """Trains one method in this process, or only checks it; a signal saves the run that is being trained."""
    stop = StopRequest().watch()
    import_jax()
    from gnp_scale.evidence.plan import checked_names
    from gnp_scale.evidence.run import rows_of
    from gnp_scale.run import processes

    plan = _plan(options, flags)
    (name,) = checked_names([options.row or options.check], plan.table)
    processes.start()
    # A gate is computed by JAX, which thereby starts the devices.
    row = rows_of(plan, folder)[name]
    stop.joined(*processes.coordination())
    processes.check_devices()
    from gnp_scale.evidence.claim import claimed_by_all
    from gnp_scale.evidence.trial import check_fits, trial

    check_fits(row.config)
    if options.check is not None:
        return Exit.FINISHED
    with claimed_by_all(row):
        return row.run(lambda run, config, run_dir: trial(config, run_dir, stop, is_final=run.is_final))
