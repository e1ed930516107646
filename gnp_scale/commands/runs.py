"""The commands for a run that exists: `gnp-scale eval | status | fingerprint`."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from gnp_scale.arguments import at_least
from gnp_scale.checks import local_path
from gnp_scale.commands.common import config_of_run, existing_run, import_jax, on_cpu
from gnp_scale.config import Config, check
from gnp_scale.exit_codes import Exit

_WATCH_S, _MOST_WATCH_S = 5.0, 86400.0
_EVAL_OPTIONS = ("--pictures", "--probe", "--average")


def add(commands: Any) -> None:
    """Adds the commands to the parsers `commands`."""
    evaluate = commands.add_parser("eval", help="evaluate a run, or pretrained weights", allow_abbrev=False)
    evaluate.add_argument(
        "run_dir",
        metavar="RUN",
        help="folder of the run, whose newest checkpoint is evaluated (flags of data and mesh may follow); or a recipe "
        "FILE:FUNCTION, followed by --model.init-from WEIGHTS and any flags of train",
    )
    evaluate.add_argument("--pictures", metavar="FOLDER", help="draw the confusion matrix and the worst images there")
    evaluate.add_argument("--probe", action="store_true", help="judge the features: a linear probe, nearest neighbours")
    evaluate.add_argument("--average", metavar="N", type=at_least(1), help="average the last N checkpoints")
    evaluate.set_defaults(command=_eval, takes_flags=True)

    fingerprint = commands.add_parser("fingerprint", help="print a hash of the saved state")
    fingerprint.add_argument("run_dir", metavar="RUN", help="folder of the run")
    fingerprint.add_argument("--step", type=at_least(0), help="which checkpoint (default: the newest)")
    fingerprint.set_defaults(command=_fingerprint, takes_flags=False)

    status = commands.add_parser("status", help="the state of runs, and how a run spent its time", allow_abbrev=False)
    status.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, which may be running, or of runs")
    status.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=_WATCH_S,
        metavar="SECONDS",
        help="show it again until all have ended",
    )
    status.add_argument("--json", action="store_true", help="print a line of JSON for each run")
    status.set_defaults(command=_status, takes_flags=False)


def _eval(options: argparse.Namespace, flags: Sequence[str]) -> int:
    run_dir = None if ".py:" in options.run_dir else existing_run(options.run_dir)
    check(
        run_dir is not None or options.average is None,
        f"{options.run_dir} is a recipe, and has no checkpoints to average: leave --average out",
    )
    pictures = None if options.pictures is None else local_path("--pictures", options.pictures)
    import_jax()
    from gnp_scale.run import processes

    config = (
        _config_of_recipe(options.run_dir, flags)
        if run_dir is None
        else config_of_run(run_dir, flags, "eval", "[--probe] [--average N]", _EVAL_OPTIONS)
    )
    processes.start()
    processes.check_devices()
    from gnp_scale.evaluation.existing import evaluate_run, probe_run

    judge = probe_run if options.probe else evaluate_run
    step, scores = judge(config, run_dir, pictures, options.average)
    if processes.is_main_process():
        print(json.dumps({"step": step, **scores}))
    return Exit.FINISHED


def _config_of_recipe(name: str, flags: Sequence[str]) -> Config:
    from gnp_scale import recipe

    usage = "gnp-scale eval FILE:FUNCTION --model.init-from WEIGHTS [--probe]"
    config = recipe.override(recipe.load(name), flags, usage, _EVAL_OPTIONS)
    check(
        config.model.init_from != "",
        f"{name} is a recipe without weights: give the folder of its run, runs/NAME or that of --run-dir, or add "
        "--model.init-from WEIGHTS",
    )
    return config


def _status(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.run.overview import show

    show([existing_run(text) for text in options.runs], options.watch, as_json=options.json)
    return Exit.FINISHED


def _seconds(text: str) -> float:
    """The argument of `--watch`."""
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds: give --watch after the runs") from None
    if not 0 < seconds < _MOST_WATCH_S:
        raise argparse.ArgumentTypeError(f"{text} is out of range: give seconds between 0 and {_MOST_WATCH_S:.0f}")
    return seconds


def _fingerprint(options: argparse.Namespace, flags: Sequence[str]) -> int:
    on_cpu()
    from gnp_scale.checkpoint import fingerprint
    from gnp_scale.run.status import unreadable_is_config_error

    run_dir = existing_run(options.run_dir)
    with unreadable_is_config_error(run_dir):
        step, digest = fingerprint(run_dir, options.step)
    print(f"{digest}  step {step}")
    return Exit.FINISHED
