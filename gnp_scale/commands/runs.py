"""The commands for a run that exists: `gnp-scale eval | status | fingerprint`."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from gnp_scale.arguments import at_least
from gnp_scale.checks import local_path
from gnp_scale.commands.common import existing_run, import_jax, on_cpu
from gnp_scale.config import Config, ConfigError, check
from gnp_scale.exit_codes import Exit
from gnp_scale.run.store import Folder


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
    evaluate.set_defaults(command=_eval, takes_flags=True)

    fingerprint = commands.add_parser("fingerprint", help="print a hash of the saved state")
    fingerprint.add_argument("run_dir", metavar="RUN", help="folder of the run")
    fingerprint.add_argument("--step", type=at_least(0), help="which checkpoint (default: the newest)")
    fingerprint.set_defaults(command=_fingerprint, takes_flags=False)

    status = commands.add_parser("status", help="the state of a run, and how it spent its time")
    status.add_argument("run_dir", metavar="RUN", help="folder of the run, which may be running")
    status.set_defaults(command=_status, takes_flags=False)


def _eval(options: argparse.Namespace, flags: Sequence[str]) -> int:
    run_dir = None if ".py:" in options.run_dir else existing_run(options.run_dir)
    pictures = None if options.pictures is None else local_path("--pictures", options.pictures)
    import_jax()
    from gnp_scale.run import processes

    config = _config_of_recipe(options.run_dir, flags) if run_dir is None else _config_of_run(run_dir, flags)
    processes.start()
    processes.check_devices()
    from gnp_scale.loop import evaluate_run

    step, scores = evaluate_run(config, run_dir, pictures)
    if processes.is_main_process():
        print(json.dumps({"step": step, **scores}))
    return Exit.FINISHED


def _config_of_run(run_dir: Folder, flags: Sequence[str]) -> Config:
    from gnp_scale import recipe
    from gnp_scale.run.run_dir import stored_config

    for flag in flags:
        if flag.startswith("--") and not flag.startswith(("--data.", "--mesh.", "--help")):
            raise ConfigError(f"eval has no option {flag}: only those of data and mesh; the run decides the rest")
    return recipe.override(stored_config(run_dir), flags, "gnp-scale eval RUN [--pictures FOLDER]", ("--pictures",))


def _config_of_recipe(name: str, flags: Sequence[str]) -> Config:
    from gnp_scale import recipe

    usage = "gnp-scale eval FILE:FUNCTION --model.init-from WEIGHTS [--pictures FOLDER]"
    config = recipe.override(recipe.load(name), flags, usage, ("--pictures",))
    check(
        config.model.init_from != "",
        f"{name} is a recipe without weights: give the folder of its run, runs/NAME or that of --run-dir, or add "
        "--model.init-from WEIGHTS",
    )
    return config


def _status(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.run.status import print_status

    print_status(existing_run(options.run_dir))
    return Exit.FINISHED


def _fingerprint(options: argparse.Namespace, flags: Sequence[str]) -> int:
    on_cpu()
    from gnp_scale.checkpoint import fingerprint

    step, digest = fingerprint(existing_run(options.run_dir), options.step)
    print(f"{digest}  step {step}")
    return Exit.FINISHED
