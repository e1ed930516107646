"""What a drill kills, when and how, and which outcome is expected."""

import random
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gnp_scale.exit_codes import Exit
from gnp_scale.resilience.grace import grace_s
from gnp_scale.resilience.signals import SIGNALS as STOP_SIGNALS
from gnp_scale.run.stages import Stage

# A run is killed in the stages that its processes record; waiting for data and training alternate quickly.
STAGES = (Stage.START, Stage.COMPILE, Stage.RESTORE, Stage.DATA, Stage.TRAIN, Stage.EVALUATE, Stage.SAVE)
SIGNALS = (signal.SIGKILL,) * 4 + STOP_SIGNALS
_LATEST_VISIT = {Stage.START: 1, Stage.RESTORE: 1, Stage.DATA: 12, Stage.TRAIN: 12}

_LONELY_S = 120.0
"""How long a process may continue after another one was killed. In a drill it detects silence after 10 s, and waits
60 s for a process that does not join, or joins and stays silent."""


@dataclass(frozen=True)
class Kill:
    """One signal: stage, time, kind and victims."""

    stage: Stage
    visit: int
    """Which entry into the stage, from 1."""
    share: float
    """The signal is sent after this share of the duration of the visit in the undisturbed run."""
    signal: signal.Signals
    victims: tuple[int, ...]

    @staticmethod
    def draw(rng: random.Random, num_processes: int) -> "Iterator[Kill]":
        """Endless random kills of one process or of all; each stage occurs once before any occurs again."""
        everyone = tuple(range(num_processes))
        while True:
            for stage in rng.sample(STAGES, len(STAGES)):
                visit = rng.randint(1, _LATEST_VISIT.get(stage, 2))
                victims = rng.choice([everyone, (rng.randrange(num_processes),)])
                yield Kill(stage, visit, rng.random(), rng.choice(SIGNALS), victims)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a kill."""

    kill: Kill
    stage: Stage
    """The first victim's stage when the signal was sent."""
    num_processes: int
    exit_codes: tuple[int, ...]
    end_s: float
    """Seconds from the signal until the last process ended."""

    @property
    def is_expected(self) -> bool:
        """After SIGKILL no process remains; after another signal all exit with 75, or finish, in the grace time."""
        if self.kill.signal == signal.SIGKILL:
            return self.end_s < _LONELY_S
        return set(self.exit_codes) in ({Exit.PREEMPTED}, {Exit.FINISHED}) and self.end_s < grace_s()

    def record(self) -> dict[str, Any]:
        """All fields, as JSON values."""
        kill = asdict(self.kill) | {"signal": self.kill.signal.name}
        met = {"met": self.stage, "exit_codes": self.exit_codes, "end_s": round(self.end_s, 2)}
        return {"num_processes": self.num_processes} | kill | met
