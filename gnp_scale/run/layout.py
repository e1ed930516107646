"""Names in a run folder that several parts of the program, or tests, use."""

CONFIG_FILE = "config.json"
DATA_FILE = "data.json"
LOCK_FILE = "lock"
METRICS_FILE = "metrics.jsonl"
GOODPUT_FILE = "goodput.jsonl"
ROLLBACKS_FILE = "rollbacks.json"
SWEEP_FILE = "sweep.json"
WEIGHTS_FILE = "initial_weights.json"
EVENTS_PATTERN = "events.out.tfevents.*"
STACKS_FILE = "stacks-{rank}.txt"
CHECKPOINTS_FOLDER = "checkpoints"
COMPILED_FOLDER = "compiled"
PROFILES_FOLDER = "plugins/profile"
"""Where xprof and TensorBoard look for profiles."""
COMMITTED_MARK, GOOD_MARK, DELETED_MARK = "committed", "good", "deleted"
ASIDE_MARKS = ("damaged", "rolled-back", DELETED_MARK)
"""On an object store, the last words of the names of empty objects beside the folders of checkpoints."""


def committed_folders(names: list[str]) -> dict[int, str]:
    """The folder of each step that is a checkpoint on an object store, by the names that are there."""
    found = {}
    for name in names:
        folder, _, word = name.rpartition(".")
        step = folder.partition(".")[0]
        is_aside = any(f"{folder}.{mark}" in names for mark in ASIDE_MARKS)
        if word == COMMITTED_MARK and step.isdecimal() and not is_aside:
            found[int(step)] = folder
    return found
