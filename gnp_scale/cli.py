"""The command line: `gnp-scale train | eval | fingerprint | data`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gnp_scale import recipe, runtime
from gnp_scale.config import Config, ConfigError
from gnp_scale.runtime import Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command named by `arguments`; returns the exit code. A user's mistake is one line and exit code 2."""
    try:
        options, flags = _parser().parse_known_args(arguments)
        if flags and not options.takes_flags:
            raise ConfigError(f"there is no option {flags[0]}: see gnp-scale {options.name} --help")
        return options.command(options, flags)
    except ConfigError as error:
        print(f"gnp-scale: {error}", file=sys.stderr)
        return Exit.WRONG_CONFIG
    except KeyboardInterrupt:
        print("gnp-scale: interrupted", file=sys.stderr)
        return Exit.INTERRUPTED


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

    data = commands.add_parser("data", help="get data sets").add_subparsers(required=True, metavar="COMMAND")
    download = data.add_parser("download", help="download a data set, checked and resumable")
    download.add_argument("dataset", metavar="NAME", help="fashion_mnist, cifar10 or cifar100")
    download.add_argument("--root", default=Config().data.root, help="folder for data sets (default: %(default)s)")
    download.add_argument("--url", help="another server that has the same files")
    download.set_defaults(command=_download, takes_flags=False)
    return parser


# The commands import what they need, so that help and mistakes do not wait for the libraries of training.


def _train(options: argparse.Namespace, flags: Sequence[str]) -> int:
    if options.recipe is None:
        recipe.override(Config(), [flag for flag in flags if flag in ("-h", "--help")], _TRAIN_USAGE)
        raise ConfigError("train needs a recipe: gnp-scale train configs/digits.py:quickstart, for example")
    runtime.start()
    from gnp_scale.loop import train

    config = recipe.override(recipe.load(options.recipe), flags, _TRAIN_USAGE)
    path, _, function = options.recipe.partition(":")
    run_dir = options.run_dir or Path("runs") / f"{Path(path).stem}-{function}"
    return train(config, run_dir)


_TRAIN_USAGE = "gnp-scale train FILE:FUNCTION [--run-dir RUN]"


def _eval(options: argparse.Namespace, flags: Sequence[str]) -> int:
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


def _fingerprint(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.checkpoint import fingerprint

    step, digest = fingerprint(options.run_dir, options.step)
    print(f"{digest}  step {step}")
    return Exit.FINISHED


def _download(options: argparse.Namespace, flags: Sequence[str]) -> int:
    from gnp_scale.data.download import download

    download(options.dataset, Path(options.root), options.url)
    return Exit.FINISHED


if __name__ == "__main__":
    sys.exit(main())
