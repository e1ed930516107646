"""Code that the parsers of the command line share, and the texts of its help."""

import argparse
import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NoReturn

from gnp_scale import __version__
from gnp_scale.checks import LARGEST_INT, ConfigError, closest

EXAMPLES = """\
examples:
  train a recipe, into runs/digits-quickstart:
    gnp-scale train configs/digits.py:quickstart
  resume a run that was stopped (by Ctrl-C, a signal or a crash), with the same command:
    gnp-scale train configs/digits.py:quickstart
  change values of a recipe, in another folder:
    gnp-scale train configs/digits.py:quickstart --run-dir runs/sam --gnp.alpha 1.0
  see every option, with the values of a recipe:
    gnp-scale train configs/digits.py:quickstart --help
  evaluate the newest checkpoint of a run:
    gnp-scale eval runs/digits-quickstart
  see the state of a run, also while it is running:
    gnp-scale status runs/digits-quickstart
  watch all runs in a folder, until they have ended:
    gnp-scale status runs --watch
  train all combinations of some values, and again to go on after a stop:
    gnp-scale sweep configs/digits.py:quickstart --grid gnp.r=0.05,0.1 --grid train.seed=0,1,2
  compare runs in a table, with intervals over seeds, and in a plot:
    gnp-scale compare runs/a runs/b --out runs/comparison
  kill runs at random, and compare their results with an undisturbed run:
    gnp-scale drill configs/digits.py:quickstart --num-kills 3 --train.num-steps 60 --optim.warmup-steps 10
"""

# tyro joins a line to the previous one, unless it is indented or follows an empty line.
ABOUT_TRAIN = """\
Trains the recipe that FUNCTION in FILE returns, or resumes its run.
  --run-dir   folder of the run (default: runs/FILE-FUNCTION)
  --kernels   short for --train.kernels
  --plan      a file of gnp-scale plan --json, from which the run must not differ

A flag --section.key VALUE replaces one value of the recipe. The sections:
{sections}

The defaults below are those of {defaults}.
"""


class Parser(argparse.ArgumentParser):
    """Raises ConfigError, in one line, for arguments that it cannot parse; suggests the nearest command."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{message}: see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(name) for name in action.choices]
            self.error(f"there is no {action.metavar} {value}: {closest(value, names)}it is one of {', '.join(names)}")


class Version(argparse.Action):
    """Prints the versions for a bug report, and ends the process."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Prints them and exits."""
        libraries = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib"))
        print(f"gnp-scale {__version__}, {libraries}, Python {platform.python_version()}")
        parser.exit()


def at_least(lowest: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number of at least `lowest`."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{value} is less than {lowest}")
        if value > LARGEST_INT:
            raise argparse.ArgumentTypeError(f"{value} is more than {LARGEST_INT}")
        return value

    whole_number.__name__ = "int"
    return whole_number
