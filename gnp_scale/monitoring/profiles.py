"""Records profiles of some steps with `jax.profiler`, where xprof and TensorBoard find them.

Each recording has a folder `plugins/profile/TIME_steps_FIRST-STOP` in the run folder, with two files of each process:
an `.xplane.pb` for xprof, and a `.trace.json.gz` for Perfetto.
"""

import shutil
import socket
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

from gnp_scale.config.run import TrainConfig
from gnp_scale.run.consensus import broadcast
from gnp_scale.run.files import replace_file
from gnp_scale.run.layout import PROFILES_FOLDER
from gnp_scale.run.messages import announce
from gnp_scale.run.store import Folder
from gnp_scale.run.streams import one_line, say

SUFFIXES = (".xplane.pb", ".trace.json.gz")
STEP_NAME = "train"
"""The name of a step in a profile, which also has its number."""


class Profile:
    """The recording of `train.profile_steps` in one start of a run; at the end of its block it closes an open one.

    A profile that cannot be recorded or written costs one line, not the run. Nothing here changes what is computed.
    """

    def __init__(self, config: TrainConfig, run_dir: Folder) -> None:
        self._asked, self._run_dir = config.profiled, run_dir
        self._steps, self._step = range(0), 0
        self._session = ""
        self._first: int | None = None
        """The first step of the recording that is open."""
        self._folder: Path | None = None
        """Where the profiler writes; processes of one host would write the same file in the run folder."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def begin(self, start: int) -> None:
        """Records that the next step is `start + 1`, at first or after a rollback, which ends an open recording.

        The first step is not recorded: it also allocates, and reads what later steps find in caches.
        """
        self._stop()
        self._steps = range(max(self._asked.start, start + 2), self._asked.stop)
        if self._asked and not self._steps and self._step == 0:
            announce(f"no profile of steps {_words(self._asked)}: this start goes on after step {start}")

    def turns_before(self, step: int) -> bool:
        """Whether a recording begins or ends before `step`; the devices must then have computed all earlier ones."""
        return bool(self._steps) and step in (self._steps.start, self._steps.stop)

    def turn(self) -> None:
        """Begins the recording, or ends it. Call it in every process where `turns_before` tells."""
        if self._step < self._steps.start:
            self._start()
        else:
            self._stop()

    def step(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """A block for the work of the host for `step`, whose number every profile shows."""
        self._step = step
        return jax.profiler.StepTraceAnnotation(STEP_NAME, step_num=step)

    def _start(self) -> None:
        # Programs that show profiles keep what they have computed beside them, so each recording has its own folder.
        time_of_main = broadcast(time.strftime("%Y-%m-%d_%H-%M-%S"))
        self._session = f"{time_of_main}_steps_{self._asked.start}-{self._asked.stop}"
        options = jax.profiler.ProfileOptions()
        # Events of each Python function would slow the host, and fill the file.
        options.python_tracer_level = 0
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="gnp-scale-profile-"))
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._first = self._steps.start
        except (OSError, RuntimeError) as error:
            say(f"no profile of steps {_words(self._steps)} ({one_line(error)}): training goes on")

    def _stop(self) -> None:
        if self._first is not None:
            steps = range(self._first, self._step + 1)
            try:
                jax.profiler.stop_trace()
                self._write()
                announce(f"profile of steps {_words(steps)}: xprof --logdir {self._run_dir}")
            except (OSError, RuntimeError) as error:
                say(f"no profile of steps {_words(steps)} ({one_line(error)}): training goes on")
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._first = self._folder = None

    def _write(self) -> None:
        """Puts the files of this process into the run folder, as a whole."""
        assert self._folder is not None, "a recording has a folder"
        target = self._run_dir / PROFILES_FOLDER / self._session
        if isinstance(target, Path):
            target.mkdir(parents=True, exist_ok=True)
        for suffix in SUFFIXES:
            for file in self._folder.rglob(f"*{suffix}"):
                replace_file(target / f"{socket.gethostname()}_{jax.process_index()}{suffix}", file.read_bytes())


def _words(steps: range) -> str:
    return f"{steps.start} to {steps.stop - 1}"
