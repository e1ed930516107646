"""A process of a drill: `gnp-scale` that also records its stages and its training examples.

It runs as `python -m gnp_scale.chaos.worker STAGES EXAMPLES train ...` and appends lines of JSON to two files. In
their names, `{rank}` is replaced by the rank of the process. A line of STAGES holds the `stage` that it enters or
returns to, and the `time`. A line of EXAMPLES holds the `step` and the `crc32` of this process's rows of the batch.
"""

import contextlib
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from gnp_scale import cli
from gnp_scale.commands import train
from gnp_scale.resilience import preemption
from gnp_scale.run import stages
from gnp_scale.run.recorder import append
from gnp_scale.run.stages import Stage


def main() -> int:
    """Runs the command line after the two file names."""
    # Under nohup, SIGHUP is ignored, also by the processes of a drill, which sends it.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    rank = os.environ.get("JAX_PROCESS_ID", "0")
    stages_file, examples_file = (Path(name.replace("{rank}", rank)) for name in sys.argv[1:3])

    def tell(stage: Stage) -> None:
        append(stages_file, {"stage": stage, "time": time.monotonic()})

    class ToldStages(stages.Stages):
        @contextlib.contextmanager
        def enter(self, stage: Stage, step: int) -> Iterator[None]:
            try:
                with super().enter(stage, step):
                    tell(stage)
                    yield
            finally:
                tell(self.now.stage)

    class ToldStopRequest(preemption.StopRequest):
        def watch(self) -> Self:
            super().watch()
            tell(Stage.START)
            return self

        def joined(self, client: Any, rank: int, num_processes: int) -> None:
            super().joined(client, rank, num_processes)
            from gnp_scale.data import pipeline

            pipeline.train_batches = _recorded(pipeline.train_batches, examples_file)

    stages.Stages = ToldStages
    train.StopRequest = ToldStopRequest
    return cli.main(sys.argv[3:])


def _recorded(train_batches: Callable[..., Any], path: Path) -> Callable[..., Any]:
    def batches(dataset: Any, config: Any, seed: int, start_step: int, num_steps: int) -> Any:
        with contextlib.closing(train_batches(dataset, config, seed, start_step, num_steps)) as stream:
            for step, batch in enumerate(stream, start_step + 1):
                append(path, {"step": step, "crc32": _crc32(batch)})
                yield batch

    return batches


def _crc32(batch: Any) -> int:
    import numpy as np

    total = 0
    for name in sorted(batch):
        for shard in batch[name].addressable_shards:
            total = zlib.crc32(np.ascontiguousarray(shard.data).tobytes(), total)
    return total


if __name__ == "__main__":
    sys.exit(main())
