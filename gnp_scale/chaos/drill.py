"""Kill drills: compares runs of real processes, killed at random points of every stage, with an undisturbed run.

For each number of processes, a drill makes one undisturbed run. Then it kills each of several runs a few times, and
restarts them until they finish. Their state, metrics and examples must equal the undisturbed run's bitwise.
"""

import contextlib
import itertools
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from rich.table import Table

from gnp_scale.chaos.comparison import EXAMPLES_FILE, STAGES_FILE, compare, file_of, rows_of, run_of, visits_of
from gnp_scale.chaos.faults import STAGES, Kill, Outcome
from gnp_scale.chaos.local_processes import LocalJob
from gnp_scale.config import ConfigError, check
from gnp_scale.exit_codes import Exit
from gnp_scale.resilience.signals import signals_to_take
from gnp_scale.run.budgets import VARIABLE as BUDGETS
from gnp_scale.run.console import make_console
from gnp_scale.run.logs import telling_line
from gnp_scale.run.recorder import append
from gnp_scale.run.stages import Stage
from gnp_scale.run.store import StorePath

_KILLS_OF_A_RUN = 4
_MAX_FAILURES = 3
_POLL_S = 0.002


class Drill:
    """Drills of the recipe in `arguments`, in `folder`; with `store`, the runs themselves are there.

    Each start of a run must end within `timeout_s`.

    Raises:
        ConfigError: the folder is not empty.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        num_devices: int,
        seed: int,
        timeout_s: float,
        store: StorePath | None = None,
    ) -> None:
        self._arguments, self._folder, self._num_devices, self._seed = arguments, folder, num_devices, seed
        self._timeout_s, self._store = timeout_s, store
        check(not folder.exists() or not any(folder.iterdir()), f"{folder} is not empty: choose another --run-dir")
        check(store is None or not store.names(), f"{store} is not empty: choose another --store")

    def run(self, num_processes: int, num_kills: int) -> tuple[list[Outcome], list[str]]:
        """The outcomes of `num_kills` kills, and every difference from the undisturbed run.

        Raises:
            ConfigError: the undisturbed run does not finish, or a run does not end in time.
        """
        whole = self._folder / f"{num_processes}-whole"
        kills = Kill.draw(random.Random(f"{self._seed} {num_processes}"), num_processes)
        self._undisturbed(whole, num_processes)
        visits_s = visits_of(whole)
        outcomes: list[Outcome] = []
        differences = []
        for number in itertools.count(1):
            if len(outcomes) == num_kills:
                break
            folder = self._folder / f"{num_processes}-killed-{number}"
            some = itertools.islice(kills, min(_KILLS_OF_A_RUN, num_kills - len(outcomes)))
            outcomes += self._killed_run(folder, num_processes, some, visits_s)
            differences += [
                f"{folder.name}: {difference}" for difference in compare(folder, whole, num_processes, self._store)
            ]
        return outcomes, differences

    def _undisturbed(self, whole: Path, num_processes: int) -> None:
        with self._start(whole, num_processes) as job:
            codes = set(self._codes(job, whole))
        if codes == {Exit.FINISHED}:
            return
        reason = telling_line(job.output())
        if codes == {Exit.WRONG_CONFIG} and not (whole / "run").exists():
            # Nothing was begun, so the corrected command may have the same folder.
            shutil.rmtree(whole)
            raise ConfigError(f"the run of a drill is refused: {reason}")
        raise ConfigError(f"the run does not finish undisturbed: {reason}; all of its output is in {whole}")

    def _killed_run(
        self, folder: Path, num_processes: int, kills: Iterator[Kill], visits_s: dict[Stage, list[float]]
    ) -> list[Outcome]:
        """Kills a run with each of `kills` whose moment occurs, and then lets it finish."""
        outcomes: list[Outcome] = []
        num_failures = 0
        while True:
            kill = next(kills, None)
            with self._start(folder, num_processes) as job:
                stage = _send(kill, job, folder, visits_s) if kill is not None else None
                sent_s = time.monotonic()
                codes = self._codes(job, folder)
            if kill is not None and stage is not None:
                outcomes.append(Outcome(kill, stage, num_processes, codes, time.monotonic() - sent_s))
                append(self._folder / "kills.jsonl", outcomes[-1].record())
            if set(codes) == {Exit.FINISHED}:
                return outcomes
            if stage is None:
                # Like a launch script, restart after a failure that no kill caused, but not forever.
                print(f"{folder.name}: a start ended with exit codes {codes} without a kill; see its logs", flush=True)
                num_failures += 1
                check(num_failures < _MAX_FAILURES, f"{folder} fails without a kill: see its logs")

    def _codes(self, job: LocalJob, folder: Path) -> tuple[int, ...]:
        try:
            return tuple(job.exit_codes(self._timeout_s))
        except subprocess.TimeoutExpired as error:
            raise ConfigError(
                f"{folder} has not ended within {self._timeout_s:g} s: see its logs; give fewer steps or a longer "
                "--timeout-s"
            ) from error

    def _start(self, folder: Path, num_processes: int) -> LocalJob:
        number = sum(1 for _ in folder.glob("logs-*")) + 1
        for rank in range(num_processes):
            file_of(folder, STAGES_FILE, rank).unlink(missing_ok=True)
        return LocalJob(
            folder / f"logs-{number}",
            ["train", *self._arguments, "--run-dir", str(run_of(folder, self._store))],
            num_processes,
            self._num_devices,
            entry=("gnp_scale.chaos.worker", str(folder / STAGES_FILE), str(folder / EXAMPLES_FILE)),
            variables={BUDGETS: "silence=10,join=60"},
        )


def _send(kill: Kill, job: LocalJob, folder: Path, visits_s: dict[Stage, list[float]]) -> Stage | None:
    """Waits for the moment of a kill and sends it; returns the stage that it hit, None if a process ends before."""
    watched = file_of(folder, STAGES_FILE, kill.victims[0])
    # SIGKILL may come before the first line of Python. For other signals, no handler is installed at that time.
    at_once = kill.stage == Stage.START and kill.signal == signal.SIGKILL
    while not at_once and sum(row["stage"] == kill.stage for row in rows_of(watched)) < kill.visit:
        if not job.is_whole:
            return None
        time.sleep(_POLL_S)
    seconds = visits_s[kill.stage]
    time.sleep(kill.share * seconds[min(kill.visit, len(seconds)) - 1])
    if not job.is_whole:
        return None
    for rank in kill.victims:
        job.processes[rank].send_signal(kill.signal)
    return Stage((rows_of(watched) or [{"stage": Stage.START}])[-1]["stage"])


def drill(
    arguments: Sequence[str],
    folder: Path,
    process_counts: Sequence[int],
    num_kills: int,
    num_devices: int,
    seed: int,
    timeout_s: float,
    store: StorePath | None = None,
) -> Exit:
    """Drills with each number of processes, `num_kills` kills in all; prints a table and every difference.

    Raises:
        ConfigError: the undisturbed run does not finish, a run does not end in time, or the devices do not divide over
            the processes.
    """
    for num_processes in process_counts:
        check(
            num_devices % num_processes == 0,
            f"{num_devices} devices do not divide over {num_processes} processes: give --num-devices and "
            "--num-processes that fit",
        )
        check(
            process_counts.count(num_processes) == 1,
            f"--num-processes has {num_processes} twice: give each number once, and more --num-kills",
        )
    # This process only reads checkpoints: it leaves the devices to the processes that it starts.
    jax.config.update("jax_platforms", "cpu")
    runs = Drill(arguments, folder, num_devices, seed, timeout_s, store)
    outcomes: list[Outcome] = []
    differences: list[str] = []
    with _signals_interrupt():
        for n, num_processes in enumerate(process_counts):
            share = num_kills // len(process_counts) + (n < num_kills % len(process_counts))
            new_outcomes, new_differences = runs.run(num_processes, share)
            outcomes += new_outcomes
            differences += new_differences
    unexpected = [outcome for outcome in outcomes if not outcome.is_expected]
    _print(outcomes)
    for line in [*differences, *(f"unexpected: {outcome.record()}" for outcome in unexpected)]:
        print(line)
    verdict = "bitwise equal to the undisturbed runs" if not differences else f"{len(differences)} differences"
    print(f"kills {len(outcomes)}, with an unexpected end {len(unexpected)}; after restarts {verdict}")
    return Exit.FAILED if differences or unexpected else Exit.FINISHED


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process as Ctrl-C does, so that the processes it has started end too."""
    taken = [number for number in signals_to_take() if number in (signal.SIGTERM, signal.SIGHUP)]
    old = {number: signal.signal(number, signal.default_int_handler) for number in taken}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _print(outcomes: Sequence[Outcome]) -> None:
    table = Table("processes", "killed", "stage", "signals", "kills", "exit codes", "slowest end")
    groups: dict[tuple[int, str, Stage, str], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda o: (o.num_processes, len(o.kill.victims), STAGES.index(o.stage))):
        who = "all" if len(outcome.kill.victims) == outcome.num_processes else "one"
        what = "SIGKILL" if outcome.kill.signal == signal.SIGKILL else "others"
        groups.setdefault((outcome.num_processes, who, outcome.stage, what), []).append(outcome)
    for (num_processes, who, stage, what), group in groups.items():
        codes = Counter(code for outcome in group for code in outcome.exit_codes)
        shown = ", ".join(f"{code} ({count})" for code, count in sorted(codes.items()))
        end_s = max(outcome.end_s for outcome in group)
        table.add_row(str(num_processes), who, stage, what, str(len(group)), shown, f"{end_s:.1f} s")
    make_console().print(table, width=120)
