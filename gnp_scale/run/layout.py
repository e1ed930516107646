"""Names in a run folder that several parts of the program, or tests, use."""

CONFIG_FILE = "config.json"
LOCK_FILE = "lock"
METRICS_FILE = "metrics.jsonl"
GOODPUT_FILE = "goodput.jsonl"
ROLLBACKS_FILE = "rollbacks.json"
CHECKPOINTS_FOLDER = "checkpoints"
COMPILED_FOLDER = "compiled"
