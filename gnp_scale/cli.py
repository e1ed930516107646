"""The command line `gnp-scale`."""

import argparse
import sys
import traceback
from collections.abc import Sequence

from gnp_scale.arguments import EXAMPLES, Parser, Version
from gnp_scale.checks import PassingError
from gnp_scale.commands import bench, data, drill, export, plan, runs, sharpness, sweeps, train, zoo
from gnp_scale.config import ConfigError
from gnp_scale.exit_codes import Exit, exit_code
from gnp_scale.resilience.interrupts import interruptible
from gnp_scale.run import streams
from gnp_scale.run.store_requests import StoreError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command in `arguments`; returns the exit code. A user's mistake gives one line and exit code 2."""
    streams.protect()
    code, reason = _run(arguments)
    lost = streams.lost_results()
    if lost is not None and code == Exit.FINISHED:
        streams.say(lost)
        code = Exit.FAILED
    if "gnp_scale.run.processes" not in sys.modules:
        return code
    from gnp_scale.run import processes

    return processes.leave(code, reason)


def _run(arguments: Sequence[str] | None) -> tuple[int, str | None]:
    """The exit code, and the reason if the command failed with an error."""
    try:
        options, flags = _parser().parse_known_args(arguments)
        if flags and not options.takes_flags:
            raise ConfigError(f"{_unknown(flags[0])}: see gnp-scale {options.name} --help")
        with interruptible():
            return options.command(options, flags), None
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        reason = "interrupted" if code == Exit.INTERRUPTED else str(error)
        if code == Exit.FAILED and not isinstance(error, PassingError | StoreError):
            traceback.print_exc()
        else:
            streams.say(reason)
        return code, reason.partition("\n")[0]


def _unknown(word: str) -> str:
    return f"there is no option {word}" if word.startswith("-") else f"{word} is after an option, and belongs before it"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gnp-scale",
        description="Training with a penalty on the gradient norm.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print versions and exit")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for group in (train, plan, runs, sharpness, sweeps, export, zoo, drill, data, bench):
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
