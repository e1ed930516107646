"""The commands for many runs: `gnp-scale sweep | compare`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnp_scale.arguments import at_least
from gnp_scale.checks import check, local_path
from gnp_scale.commands.common import default_run_dir, on_cpu
from gnp_scale.exit_codes import Exit, exit_code_of_all
from gnp_scale.resilience.signals import ends_at_a_signal
from gnp_scale.run.streams import say

if TYPE_CHECKING:
    from gnp_scale.sweeps.record import Sweep


def add(commands: Any) -> None:
    """Adds the commands to the parsers `commands`."""
    sweep = commands.add_parser("sweep", help="train a recipe for each point of a grid", allow_abbrev=False)
    sweep.add_argument("recipe", metavar="RECIPE", help="FILE:FUNCTION (flags of train may follow)")
    sweep.add_argument(
        "--grid", action="append", default=[], metavar="KEY=VALUE,VALUE", help="an axis; several make all combinations"
    )
    sweep.add_argument("--sweep-dir", help="folder of the runs and their table (default: runs/sweep-RECIPE)")
    sweep.add_argument("--jobs", type=at_least(1), help="runs at a time (default: 1; under Slurm: no limit)")
    sweep.add_argument("--report", action="store_true", help="only write the table and the plot of what there is")
    sweep.add_argument("--slurm", action="store_true", help="submit the runs as an array job, and return")
    sweep.add_argument(
        "--sbatch", action="append", default=[], metavar="=OPTION", help="of sbatch: --sbatch=--gpus-per-node=8"
    )
    sweep.add_argument("--kernels", help="short for --train.kernels")
    sweep.set_defaults(command=_sweep, takes_flags=True)

    compare = commands.add_parser("compare", help="a table and a plot of runs side by side", allow_abbrev=False)
    compare.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, of a sweep, or of several runs")
    compare.add_argument("--out", metavar="FOLDER", help="write table.md and plot.png there")
    compare.set_defaults(command=_compare, takes_flags=False)


@ends_at_a_signal()
def _sweep(options: argparse.Namespace, flags: Sequence[str]) -> int:
    on_cpu()
    from gnp_scale.run import processes
    from gnp_scale.sweeps.record import check_runs, check_same, keep

    default = default_run_dir(options, "sweep-")
    folder = default if options.sweep_dir is None else local_path("--sweep-dir", options.sweep_dir)
    check(options.slurm or not options.sbatch, "--sbatch is for --slurm: add that, or leave it out")
    if options.report:
        if options.grid or flags:
            # They may be left out.
            check_same(folder, _asked_for(options, flags))
        return _report(folder)
    processes.check_alone()
    sweep, names = keep(folder, _asked_for(options, flags))
    check_runs(folder, sweep)
    unfinished = [name for name in names if not _is_finished(folder / name)]
    say(f"{folder}: points {len(names)}, finished {len(names) - len(unfinished)}")
    if options.slurm and unfinished:
        from gnp_scale.sweeps.slurm import submit

        print(submit(folder, sweep, unfinished, options.jobs, options.sbatch))
        return Exit.FINISHED
    return _train(folder, sweep, names, options.jobs or 1)


def _asked_for(options: argparse.Namespace, flags: Sequence[str]) -> "Sweep":
    """The sweep of this command; all of its points are checked."""
    from gnp_scale import recipe
    from gnp_scale.data import sources
    from gnp_scale.models import registry
    from gnp_scale.sweeps.grid import make_points
    from gnp_scale.sweeps.record import Sweep

    if options.kernels is not None:
        flags = [*flags, "--train.kernels", options.kernels]
    points = make_points(recipe.load(options.recipe), flags, options.grid)
    for _, config in points.values():
        registry.check_options(config.model)
        sources.check_options(config.data)
    config = next(config for _, config in points.values())
    return Sweep(options.recipe, tuple(flags), config, {name: values for name, (values, _) in points.items()})


def _train(folder: Path, sweep: "Sweep", names: Sequence[str], num_jobs: int) -> int:
    """Trains what is not finished, and reports; returns the exit code."""
    from gnp_scale.sweeps.queue import Queue, meaning

    train = [sys.executable, "-m", "gnp_scale.cli", "train"]
    commands = {name: [*train, *sweep.arguments(name, folder)] for name in names}
    queue = Queue(folder, commands, lambda name: _is_finished(folder / name), num_jobs)
    has_ended = queue.run()
    states = {name: meaning(code) for name, code in queue.codes.items() if code != Exit.FINISHED}
    # Its folder was moved or removed shortly before its end.
    lost = [name for name, code in queue.codes.items() if code == Exit.FINISHED and not _is_finished(folder / name)]
    for name, state in states.items():
        say(f"{name}: {state}: {queue.error_of(name)}")
    for name in lost:
        say(f"{name}: it ended, and its folder has no record of that: bring {folder / name} back, or train it again")
    _report(folder, states)
    if not has_ended:
        say("stopped: the same command goes on")
        return Exit.PREEMPTED
    return Exit.FAILED if lost else exit_code_of_all(queue.codes.values())


def _is_finished(run_dir: Path) -> bool:
    from gnp_scale.run.find import is_run
    from gnp_scale.run.history import read_history

    try:
        starts = read_history(run_dir).starts if is_run(run_dir) else ()
    except OSError:
        # The run itself tells what is wrong with its folder.
        return False
    return bool(starts) and starts[-1].exit == Exit.FINISHED


def _report(folder: Path, states: Mapping[str, str] | None = None) -> int:
    from gnp_scale.sweeps.record import check_runs, read
    from gnp_scale.sweeps.report import write
    from gnp_scale.sweeps.results import results_of

    sweep = read(folder)
    check(sweep is not None, f"{folder} holds no sweep: name its folder with --sweep-dir, or add --grid to begin one")
    assert sweep is not None
    check_runs(folder, sweep)
    print(write(results_of(folder, sweep, states or {}), sweep.keys, folder), end="")
    return Exit.FINISHED


def _compare(options: argparse.Namespace, flags: Sequence[str]) -> int:
    on_cpu()
    from gnp_scale.sweeps.report import write
    from gnp_scale.sweeps.results import find_results
    from gnp_scale.sweeps.table import differing_keys

    out = None if options.out is None else local_path("--out", options.out)
    results = find_results(options.runs)
    print(write(results, differing_keys(results), out), end="")
    return Exit.FINISHED
