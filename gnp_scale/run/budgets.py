"""How long a process may stay in a stage before the run counts as hung; depends on the machine, not on a recipe."""

import os

from gnp_scale.config import ConfigError
from gnp_scale.run.stages import Stage

VARIABLE = "GNP_SCALE_BUDGETS_S"
"""Environment variable that replaces some of the defaults, such as `train=60,compile=7200`."""

DEFAULTS_S = {
    # From the start of a process until it has found the others: nodes and their file systems may start minutes apart.
    "join": 300.0,
    # Without a report, in any stage; below the 100 s after which JAX aborts the other processes.
    "silence": 45.0,
    Stage.START: 900.0,
    Stage.RESTORE: 900.0,
    Stage.COMPILE: 3600.0,
    Stage.TRAIN: 600.0,
    Stage.DATA: 600.0,
    Stage.EVALUATE: 1800.0,
    Stage.SAVE: 900.0,
}
"""Seconds; for a stage, since it was entered at a step, or since the run began to be watched.

A working run should stay far below them.
"""


def budgets_s() -> dict[str, float]:
    """`DEFAULTS_S`, with the replacements of the environment variable.

    Raises: ConfigError: the variable cannot be parsed, or names an unknown budget.
    """
    budgets = {str(name): seconds for name, seconds in DEFAULTS_S.items()}
    text = os.environ.get(VARIABLE, "")
    for entry in filter(None, text.split(",")):
        name, _, number = entry.partition("=")
        try:
            seconds = float(number)
        except ValueError:
            seconds = 0.0
        if name not in budgets or not seconds > 0:
            known = ", ".join(budgets)
            raise ConfigError(f"{VARIABLE} is {text!r}: write it as train=60,save=600, with names among {known}")
        budgets[name] = seconds
    return budgets
