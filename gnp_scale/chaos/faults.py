"""What a drill kills, when and how, and which end is expected."""

import random
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gnp_scale.exit_codes import Exit
from gnp_scale.resilience import preemption
from gnp_scale.resilience.grace import grace_s
from gnp_scale.run.stages import Stage

# A run is killed in the stages that its processes tell of; waiting for data and training follow each other closely.
STAGES = (Stage.START, Stage.COMPILE, Stage.RESTORE, Stage.DATA, Stage.TRAIN, Stage.EVALUATE, Stage.SAVE)
SIGNALS = (signal.SIGKILL,) * 4 + preemption.SIGNALS
_LATEST_VISIT = {Stage.START: 1, Stage.RESTORE: 1, Stage.DATA: 12, Stage.TRAIN: 12}

_LONELY_S = 120.0
"""For how long a process may live on when another one was killed: in a drill it notices silence after 10 s, and waits
60 s for one that does not join, or joins and says nothing."""


@dataclass(frozen=True)
class Kill:
    """One signal: where, when, what and to whom."""

    stage: Stage
    visit: int
    """Number of the entry into the stage, from 1."""
    share: float
    """Of the time that this visit took in the undisturbed run, after which the signal is sent."""
    signal: signal.Signals
    victims: tuple[int, ...]

    @staticmethod
    def draw(rng: random.Random, num_processes: int) -> "Iterator[Kill]":
        """Random ones without end, for one process alone or for all; each stage once before any comes again."""
        everyone = tuple(range(num_processes))
        while True:
            for stage in rng.sample(STAGES, len(STAGES)):
                visit = rng.randint(1, _LATEST_VISIT.get(stage, 2))
                victims = rng.choice([everyone, (rng.randrange(num_processes),)])
                yield Kill(stage, visit, rng.random(), rng.choice(SIGNALS), victims)


@dataclass(frozen=True)
class Outcome:
    """What a kill led to."""

    kill: Kill
    stage: Stage
    """Of the first victim when the signal was sent."""
    num_processes: int
    exit_codes: tuple[int, ...]
    end_s: float
    """Seconds from the signal until the last process had ended."""

    @property
    def is_expected(self) -> bool:
        """After SIGKILL no process stays behind; after another signal all end with 75, or finish, in the grace time."""
        if self.kill.signal == signal.SIGKILL:
            return self.end_s < _LONELY_S
        return set(self.exit_codes) in ({Exit.PREEMPTED}, {Exit.FINISHED}) and self.end_s < grace_s()

    def record(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        kill = asdict(self.kill) | {"signal": self.kill.signal.name}
        met = {"met": self.stage, "exit_codes": self.exit_codes, "end_s": round(self.end_s, 2)}
        return {"num_processes": self.num_processes} | kill | met
