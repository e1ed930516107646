"""Run folders as a trainer leaves them, with the files that comparisons read, for tests."""

import json
import time

from gnp_scale import recipe


def make_run(folder, config, top1, exit_code=0, hours=1.0):
    """A run with the accuracies `top1` after its steps; its last start ended now, with `exit_code` (None: running)."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(recipe.to_json(config))
    rows = [
        {"step": step, "perf/step_ms": 10.0 + step, "eval/top1": value, "eval/loss": 1 - value, "eval/top5": 1.0}
        for step, value in top1.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    now = time.time()
    start = {"began": now - 3600 * hours, "time": now, "stage": "train", "from_step": 0, "step": max(top1, default=0)}
    start |= {"num_rolled_back_steps": 0, "first_step_s": 1.0, "seconds": {"train": 3600 * hours}, "exit": exit_code}
    (folder / "goodput.jsonl").write_text(json.dumps(start) + "\n")
