"""What each process says of itself to the others, and which of them has stopped."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gnp_scale.run.stages import Stage


@dataclass(frozen=True)
class Report:
    """The last report of a process."""

    rank: int
    host: str
    stage: Stage
    step: int
    in_stage_s: float
    """When it was sent."""
    moment: int
    """The `StageRecord.number` of this stage."""
    beat: int
    """Rises with each report; 0 before the first."""
    heard_s: float
    """When this process first saw it, on a clock that stops while this process is stopped."""

    def encode(self) -> str:
        """The text that is sent."""
        return json.dumps([self.rank, self.host, self.stage, self.step, self.in_stage_s, self.moment, self.beat])

    @staticmethod
    def decode(text: str, heard_s: float) -> "Report":
        """The report that `encode` sent, received at `heard_s`."""
        rank, host, stage, step, in_stage_s, moment, beat = json.loads(text)
        return Report(rank, host, Stage(stage), step, in_stage_s, moment, beat, heard_s)


def find_silent(reports: Iterable[Report], now_s: float, budgets: Mapping[str, float]) -> str | None:
    """Names a process that has been silent for longer than `silence`, or than `join` before its first report."""
    for report in sorted(reports, key=lambda report: report.heard_s):
        budget, silent_s = "silence" if report.beat > 0 else "join", now_s - report.heard_s
        if silent_s > budgets[budget]:
            return f"{_where(report)} and silent for {silent_s:.0f} s (allowed: {budget}={budgets[budget]:g})"
    return None


def find_late(reports: Iterable[Report], now_s: float, budgets: Mapping[str, float]) -> str | None:
    """Names the process that the others wait for, if it has exceeded the budget of its stage.

    All go through the same stages, so it is the one that has entered the fewest. The others wait for it, in any stage;
    those that have entered as few are counted.
    """
    reports = list(reports)
    last = min(reports, key=lambda report: (report.moment, -_in_stage_s(report, now_s)))
    if _in_stage_s(last, now_s) <= budgets[last.stage]:
        return None
    num_alike = sum(report.moment == last.moment for report in reports) - 1
    alike = f", as are {num_alike} of the others" if num_alike else ""
    return f"{_where(last)} for {_in_stage_s(last, now_s):.0f} s{alike} (allowed: {last.stage}={budgets[last.stage]:g})"


def _in_stage_s(report: Report, now_s: float) -> float:
    return report.in_stage_s + now_s - report.heard_s


def _where(report: Report) -> str:
    return f"process {report.rank} on {report.host} is in {report.stage} of step {report.step}"
