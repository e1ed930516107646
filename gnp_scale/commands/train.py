"""`gnp-scale train`."""

import argparse
from collections.abc import Sequence
from typing import Any

from gnp_scale.arguments import ABOUT_TRAIN
from gnp_scale.checks import local_path
from gnp_scale.commands.common import default_run_dir, import_jax, on_cpu
from gnp_scale.config import Config, ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.resilience.preemption import StopRequest
from gnp_scale.run.store import run_folder

_TRAIN = (
    "gnp-scale train FILE:FUNCTION [--run-dir RUN] [--kernels auto|xla|triton|pallas] [--plan FILE]",
    ("--run-dir", "--kernels", "--plan"),
)


def add(commands: Any) -> None:
    """Adds the command to the parsers `commands`."""
    train = commands.add_parser("train", help="train a recipe, or resume its run", add_help=False, allow_abbrev=False)
    train.add_argument("recipe", nargs="?")
    train.add_argument("--run-dir")
    train.add_argument("--kernels")
    train.add_argument("--plan")
    train.set_defaults(command=_train, takes_flags=True)


def _train(options: argparse.Namespace, flags: Sequence[str]) -> int:
    if options.recipe is None or {"-h", "--help"} & set(flags):
        return _explain_train(options.recipe, flags)
    if ":" not in options.recipe and any(":" in flag for flag in flags):
        raise ConfigError("the recipe comes first: gnp-scale train FILE:FUNCTION, and then the flags")
    default = default_run_dir(options)
    run_dir = default if options.run_dir is None else run_folder("--run-dir", options.run_dir)
    stop = StopRequest().watch()
    import_jax()
    from gnp_scale import recipe
    from gnp_scale.run import processes

    processes.start()
    stop.joined(*processes.coordination())
    processes.check_devices()
    from gnp_scale.loop import train
    from gnp_scale.monitoring.metrics import read_metrics
    from gnp_scale.run.messages import announce

    if options.kernels is not None:
        flags = [*flags, "--train.kernels", options.kernels]
    config = recipe.override(recipe.load(options.recipe), flags, *_TRAIN)
    if options.plan is None:
        return train(config, run_dir, stop)
    from gnp_scale.planning import check

    plan = check.read(local_path("--plan", options.plan))
    check.check_run(plan, config)
    code = train(config, run_dir, stop)
    if code == Exit.FINISHED and (line := check.comparison(plan, read_metrics(run_dir), check.most_used_bytes())):
        announce(line)
    return code


def _explain_train(name: str | None, flags: Sequence[str]) -> int:
    """Prints the sections, then all options, with the values of the recipe if there is one."""
    if not {"-h", "--help"} & set(flags):
        raise ConfigError("train needs a recipe: gnp-scale train configs/digits.py:quickstart, for example")
    if name is not None:
        on_cpu()
    from gnp_scale import recipe

    config = Config() if name is None else recipe.load(name)
    defaults = "gnp_scale/config/; name a recipe to see its own" if name is None else f"the recipe {name}"
    about = ABOUT_TRAIN.format(sections=recipe.overview(), defaults=defaults)
    recipe.override(config, ["--help"], *_TRAIN, about)
    return Exit.FINISHED
