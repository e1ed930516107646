"""What `gnp-scale sharpness` prints and writes: lines of text, a file of numbers, pictures, TensorBoard events."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gnp_scale.config import ConfigError
from gnp_scale.data.dataset import evenly_spaced
from gnp_scale.monitoring.tensorboard import TensorBoard
from gnp_scale.sharpness import corruptions
from gnp_scale.sharpness.corruptions import SEVERITIES
from gnp_scale.sharpness.line import Line
from gnp_scale.sharpness.measure import Report
from gnp_scale.sharpness.pictures import accuracy_picture, line_picture, plane_picture, trajectory_picture
from gnp_scale.sharpness.settings import Settings
from gnp_scale.sharpness.trajectory import Trajectory

_PICTURES = ("plane", "trajectory", "accuracy", "line", "corruptions")
_FIRST, _COLUMN = 26, 13
"""Characters of the first column and of the others."""
_MOST_COLUMNS = 7


def lines(report: Report, settings: Settings) -> Iterator[str]:
    """The report for a reader."""
    scores, measures = report.scores, settings.measures
    yield f"step {report.step}"
    if "sharpness/num_examples" in scores:
        yield _row(f"loss of {scores['sharpness/num_examples']:.0f} examples", [f"{scores['sharpness/loss']:.4g}"])
    if "rise" in measures:
        yield from _rise_lines(scores, settings)
    if "spectrum" in measures:
        yield from _spectrum_lines(scores)
    if report.losses is not None:
        yield _row("highest loss of the plane", [f"{np.nanmax(report.losses):.4g}"])
    if report.trajectory is not None:
        yield from _trajectory_lines(report.trajectory)
    if report.line is not None:
        yield from _line_lines(report, report.line)
    if "robustness/top1" in scores:
        yield _row("accuracy", [f"{scores['robustness/top1']:.2%}"])
    if "rounding" in measures:
        for num_bits in (8, 4):
            yield _row(f"  kernels of {num_bits} bits", [f"{scores[f'robustness/{num_bits}_bits']:.2%}"])
    if "corruptions" in measures:
        severities = [severity for severity in SEVERITIES if severity]
        yield _row("  by severity", [str(severity) for severity in severities])
        for kind in corruptions.KINDS:
            top1 = [f"{scores[f'robustness/{kind}_{severity}']:.2%}" for severity in severities]
            yield _row(f"  {kind.replace('_', ' ')}", top1)


def _rise_lines(scores: dict[str, float], settings: Settings) -> Iterator[str]:
    yield _row("gradient norm", [f"{scores['sharpness/grad_norm']:.4g}"])
    names = [f"sharpness/rise_{radius:g}" for radius in settings.radii]
    yield _row("rise of the loss", [f"r {radius:g}" for radius in settings.radii])
    yield _row("  all examples together", [f"{scores[name]:.4g}" for name in names])
    group = f"_m{settings.group_size}"
    yield _row(f"  groups of {settings.group_size}", [f"{scores[name + group]:.4g}" for name in names])
    errors = [scores[f"{name}{group}_error"] for name in names if f"{name}{group}_error" in scores]
    if errors:
        yield _row("    standard error", [f"{error:.2g}" for error in errors])


def _spectrum_lines(scores: dict[str, float]) -> Iterator[str]:
    names = [name.removesuffix("_bound") for name in scores if name.endswith("_bound")]
    yield _row("largest eigenvalues", [f"{scores[name]:.4g}" for name in names])
    yield _row("  one is at most so far", [f"{scores[f'{name}_bound']:.2g}" for name in names])
    yield _row("lowest eigenvalue", [f"{scores['sharpness/eigenvalue_lowest']:.4g}"])
    yield _row("trace", [f"{scores['sharpness/trace']:.4g}", f"+- {scores['sharpness/trace_error']:.2g}"])


def _trajectory_lines(found: Trajectory) -> Iterator[str]:
    shown = evenly_spaced(len(found.steps), _MOST_COLUMNS)
    yield _row("checkpoints", [f"step {found.steps[number]}" for number in shown])
    yield _row("  loss", [f"{found.losses[number]:.4g}" for number in shown])
    for name, place_T in zip(("first", "second"), found.places.T, strict=True):
        yield _row(f"  {name} direction", [f"{place_T[number]:.4g}" for number in shown])
    yield _row("  share of both", [f"{found.share:.2%}"])


def _line_lines(report: Report, line: Line) -> Iterator[str]:
    shown = [number for number, step in enumerate(line.steps) if step % 0.25 == 0]
    yield _row(f"to step {report.other_step} by", [f"{line.steps[number]:g}" for number in shown])
    yield _row("  loss", [f"{line.losses[number]:.4g}" for number in shown])
    yield _row("  accuracy", [f"{line.top1[number]:.2%}" for number in shown])
    yield _row("  barrier: loss, error", [f"{line.barrier:.4g}", f"{line.top1_barrier:.2%}"])


def _row(name: str, words: list[str]) -> str:
    return name.ljust(_FIRST) + "".join(word.rjust(_COLUMN) for word in words)


def write(folder: Path, run: str, report: Report, settings: Settings, other: str | None = None) -> None:
    """Writes `sharpness.json`, pictures and TensorBoard events into `folder`; `other` is the run to which a line leads.

    Pictures of an earlier measurement are replaced, or removed. Event files stay.

    Raises:
        ConfigError: the disk refuses.
    """
    pictures = _pictures(report)
    try:
        if (folder / "sharpness.json").exists():
            for name in _PICTURES:
                (folder / f"{name}.png").unlink(missing_ok=True)
        (folder / "sharpness.json").write_text(_to_json(run, report, settings, other))
        for name, picture in pictures.items():
            Image.fromarray(picture).save(folder / f"{name}.png")
        board = TensorBoard(folder, report.step)
        board.scalars(report.step, report.scores)
        for name, picture in pictures.items():
            board.images(report.step, f"sharpness/{name}", picture[None] / 255, (0.0,), (1.0,))
        board.close()
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror or error}): choose another --output") from error


def _pictures(report: Report) -> dict[str, np.ndarray]:
    pictures = {}
    if report.losses is not None:
        pictures["plane"] = plane_picture(report.losses)
    if report.trajectory is not None:
        pictures["trajectory"] = trajectory_picture(report.trajectory)
    if "robustness/blur_1" in report.scores:
        pictures["accuracy"] = accuracy_picture(report.scores)
    if report.line is not None:
        pictures["line"] = line_picture(report.line)
    if report.corrupted is not None:
        pictures["corruptions"] = report.corrupted
    return pictures


def _to_json(run: str, report: Report, settings: Settings, other: str | None) -> str:
    plane = None
    if report.steps is not None and report.losses is not None:
        plane = {"steps": report.steps.tolist(), "loss": [_finite(row) for row in report.losses.tolist()]}
    scores = dict(zip(report.scores, _finite(report.scores.values()), strict=True))
    content = {"run": run, "step": report.step, "settings": asdict(settings), "scores": scores, "plane": plane}
    if report.trajectory is not None:
        content["trajectory"] = _trajectory_json(report.trajectory)
    if report.line is not None:
        line = {"steps": report.line.steps.tolist(), "loss": _finite(report.line.losses.tolist())}
        content["line"] = {"to": other, "to_step": report.other_step, **line, "top1": report.line.top1.tolist()}
    return json.dumps(content, indent=1) + "\n"


def _trajectory_json(found: Trajectory) -> dict[str, Any]:
    of_checkpoints = {"steps": found.steps, "loss": _finite(found.losses.tolist()), "places": found.places.tolist()}
    first, second = (ticks.tolist() for ticks in found.ticks)
    plane = {"first": first, "second": second, "loss": [_finite(row) for row in found.plane.tolist()]}
    return {"checkpoints": of_checkpoints, "share": found.share, "plane": plane}


def _finite(values: Iterable[float]) -> list[float | None]:
    """JSON has no infinity."""
    return [value if np.isfinite(value) else None for value in values]
