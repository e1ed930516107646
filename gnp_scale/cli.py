"""The command line: `gnp-scale train | status | drill | eval | fingerprint | data | bench`."""

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gnp_scale.config import Config, ConfigError
from gnp_scale.exit_codes import Exit, exit_code
from gnp_scale.preemption import StopRequest


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command named by `arguments`; returns the exit code. A user's mistake is one line and exit code 2."""
    code, reason = _run(arguments)
    if "gnp_scale.runtime" not in sys.modules:
        return code
    from gnp_scale import runtime

    return runtime.leave(code, reason)


def _run(arguments: Sequence[str] | None) -> tuple[int, str | None]:
    """The exit code, and why the command failed, if it did by an error."""
    try:
        options, flags = _parser().parse_known_args(arguments)
        if flags and not options.takes_flags:
            raise ConfigError(f"there is no option {flags[0]}: see gnp-scale {options.name} --help")
        return options.command(options, flags), None
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        reason = "interrupted" if code == Exit.INTERRUPTED else str(error)
        if code == Exit.FAILED:
            traceback.print_exc()
        else:
            print(f"gnp-scale: {reason}", file=sys.stderr)
        return code, reason.partition("\n")[0]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gnp-scale", description="Training with a penalty on the gradient norm.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", help="train a recipe, or go on with its run", add_help=False, allow_abbrev=False
    )
    train.add_argument("recipe", nargs="?")
    train.add_argument("--run-dir", type=Path)
    train.add_argument("--kernels")
    train.set_defaults(command=_train, takes_flags=True)

    evaluate = commands.add_parser("eval", help="evaluate the newest checkpoint of a run", allow_abbrev=False)
    evaluate.add_argument(
        "run_dir", metavar="RUN", type=Path, help="folder of the run (flags of data and mesh may follow)"
    )
    evaluate.set_defaults(command=_eval, takes_flags=True)

    fingerprint = commands.add_parser("fingerprint", help="print a hash of the saved state")
    fingerprint.add_argument("run_dir", metavar="RUN", type=Path, help="folder of the run")
    fingerprint.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    fingerprint.set_defaults(command=_fingerprint, takes_flags=False)

    status = commands.add_parser("status", help="where a run stands, and what became of its time")
    status.add_argument("run_dir", metavar="RUN", type=Path, help="folder of the run, which may be running")
    status.set_defaults(command=_status, takes_flags=False)

    drill = commands.add_parser("drill", help="kill runs of a recipe at random, and compare", allow_abbrev=False)
    drill.add_argument("recipe", metavar="RECIPE", help="FILE:FUNCTION (flags of train may follow)")
    drill.add_argument("--run-dir", type=Path, help="a new folder for all of its runs (default: runs/drill-RECIPE)")
    drill.add_argument("--num-kills", type=int, default=10, help="in all (default: %(default)s)")
    drill.add_argument("--num-processes", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    drill.add_argument("--num-devices", type=int, default=4, help="of the CPU, over all processes (default: 4)")
    drill.add_argument("--seed", type=int, default=0, help="of what is killed and when (default: %(default)s)")
    drill.set_defaults(command=_drill, takes_flags=True)

    data = commands.add_parser("data", help="get data sets").add_subparsers(required=True, metavar="COMMAND")
    download = data.add_parser("download", help="download a data set, checked and resumable")
    download.add_argument("dataset", metavar="NAME", help="fashion_mnist, cifar10 or cifar100")
    download.add_argument("--root", default=Config().data.root, help="folder for data sets (default: %(default)s)")
    download.add_argument("--url", help="another server that has the same files")
    download.set_defaults(command=_download, takes_flags=False)

    bench = commands.add_parser("bench", help="measure this machine").add_subparsers(required=True, metavar="COMMAND")
    kernels = bench.add_parser("kernels", help="check the kernels, time them against XLA, and find their best blocks")
    kernels.add_argument("--model", default="vit_b", help="network whose parameters are used (default: %(default)s)")
    kernels.add_argument("--rounds", type=int, default=20, help="calls that are timed (default: %(default)s)")
    kernels.add_argument("--no-tuning", action="store_true", help="keep the block sizes that are there")
    kernels.set_defaults(command=_bench_kernels, takes_flags=False)
    return parser


# The commands import what they need, so that help and mistakes do not wait for the libraries of training.


def _train(options: argparse.Namespace, flags: Sequence[str]) -> int:
    if options.recipe is None:
        _explain_train(flags)
    stop = StopRequest().watch()
    from gnp_scale import recipe, runtime

    runtime.start()
    stop.joined(*runtime.coordination())
    from gnp_scale.loop import train

    if options.kernels is not None:
        flags = [*flags, "--train.kernels", options.kernels]
    config = recipe.override(recipe.load(options.recipe), flags, _TRAIN_USAGE)
    return train(config, options.run_dir or Path("runs") / _name(options.recipe), stop)


def _name(recipe: str) -> str:
    path, _, function = recipe.partition(":")
    return f"{Path(path).stem}-{function}"


def _explain_train(flags: Sequence[str]) -> NoReturn:
    from gnp_scale import recipe

    recipe.override(Config(), [flag for flag in flags if flag in ("-h", "--help")], _TRAIN_USAGE)
    raise ConfigError("train needs a recipe: gnp-scale train configs/digits.py:quickstart, for example")


_TRAIN_USAGE = "gnp-scale train FILE:FUNCTION [--run-dir RUN] [--kernels auto|xla|triton|pallas]"


def _eval(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale import recipe, runtime
    from gnp_scale.rundir import stored_config

    for flag in flags:
        if flag.startswith("--") and not flag.startswith(("--data.", "--mesh.", "--help")):
            raise ConfigError(f"eval has no option {flag}: only those of data and mesh, as the run decides the rest")
    config = recipe.override(stored_config(options.run_dir), flags, "gnp-scale eval RUN")
    runtime.start()
    from gnp_scale.loop import evaluate_run

    step, scores = evaluate_run(config, options.run_dir)
    if runtime.is_main_process():
        print(json.dumps({"step": step, **scores}))
    return Exit.FINISHED


def _status(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.status import print_status

    print_status(options.run_dir)
    return Exit.FINISHED


def _fingerprint(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.checkpoint import fingerprint

    step, digest = fingerprint(options.run_dir, options.step)
    print(f"{digest}  step {step}")
    return Exit.FINISHED


def _drill(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.drill import drill

    folder = options.run_dir or Path("runs") / f"drill-{_name(options.recipe)}"
    arguments = [options.recipe, *flags]
    return drill(arguments, folder, options.num_processes, options.num_kills, options.num_devices, options.seed)


def _download(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.data.download import download

    download(options.dataset, Path(options.root), options.url)
    return Exit.FINISHED


def _bench_kernels(options: argparse.Namespace, flags: Sequence[str]) -> int:
    if options.rounds < 2:
        raise ConfigError(f"--rounds is {options.rounds}: medians need at least 2")
    from gnp_scale import runtime

    runtime.start()
    from gnp_scale.bench import bench_kernels

    bench_kernels(options.model, options.rounds, tune=not options.no_tuning)
    return Exit.FINISHED


if __name__ == "__main__":
    sys.exit(main())
