"""`gnp-scale bench generalization --sharpness`: how flat the minima of the final runs are, and how robust the networks.

It measures the last checkpoint of each run as `gnp-scale sharpness` does, on its training images with their labels and
on the test images, and keeps the numbers in the run's folder.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import numpy as np

from gnp_scale.config import Config, ConfigError, check
from gnp_scale.evidence.methods import PLAIN
from gnp_scale.evidence.plan import config_of, folder_of
from gnp_scale.evidence.report import write_files
from gnp_scale.evidence.row import Row
from gnp_scale.evidence.summary import paired_difference
from gnp_scale.run.consensus import broadcast
from gnp_scale.run.streams import say
from gnp_scale.sharpness import corruptions, spectrum
from gnp_scale.sharpness.corruptions import SEVERITIES
from gnp_scale.sharpness.measure import measure_run
from gnp_scale.sharpness.settings import Settings
from gnp_scale.sweeps.markdown import markdown_table

SCORES_FILE, TABLE_FILE = "sharpness.json", "sharpness.md"
"""The first one is in the folder of each run, and with the scores of all of them in that of the table."""
SETTINGS = Settings(
    measures=("rise", "spectrum", "corruptions", "rounding"),
    radii=(0.1,),
    num_eigenvalues=1,
    num_lanczos_steps=12,
    num_vectors=8,
)
"""So that a run takes a minute or two on a CPU."""
_LEGEND = (
    "Means over the seeds, of the last checkpoints. The columns with a minus are differences to plain training, paired "
    "by seed, with 95 % bootstrap intervals. The loss L, its largest eigenvalue, its trace and its rise are of "
    f"{SETTINGS.num_examples:,} training images with their labels; the rise is that of groups of {SETTINGS.group_size} "
    f"after an ascent step of length {SETTINGS.radii[0]:g}. Accuracies in % of the test images: as they are; the mean "
    "over all corruptions and severities; with kernels of 4 bits. docs/sharpness.md says how each is measured."
)
type Scores = Mapping[str, float]


@dataclass(frozen=True)
class _Quantity:
    """A column of the table: a score, or the mean of some."""

    names: tuple[str, ...]
    is_share: bool = False

    def of(self, scores: Scores) -> float:
        value = float(np.mean([scores[name] for name in self.names]))
        return 100 * value if self.is_share else value

    def text(self, value: float, sign: str = "") -> str:
        return f"{value:{sign}.2f}" if self.is_share else f"{value:{sign}.4g}"


_CORRUPTED = tuple(f"robustness/{kind}_{severity}" for kind in corruptions.KINDS for severity in SEVERITIES if severity)
_QUANTITIES = {
    "L": _Quantity(("sharpness/loss",)),
    "eigenvalue": _Quantity(("sharpness/eigenvalue_1",)),
    "trace": _Quantity(("sharpness/trace",)),
    "rise": _Quantity((f"sharpness/rise_{SETTINGS.radii[0]:g}_m{SETTINGS.group_size}",)),
    "test": _Quantity(("robustness/top1",), is_share=True),
    "corrupted": _Quantity(_CORRUPTED, is_share=True),
    "4 bits": _Quantity(("robustness/4_bits",), is_share=True),
}


def measure_all(rows: Sequence[Row]) -> None:
    """Measures all final runs of `rows` that are finished and have not diverged; those that are measured are left out.

    Raises:
        ConfigError: no run is finished; matfree is not installed; a loss is not finite; or a folder cannot be written.
    """
    spectrum.check_installed()
    runs = [(run_dir, config) for row in rows for _, run_dir, config in _final_runs(row)]
    names = " ".join(row.name for row in rows)
    check(bool(runs), f"no final run of {names} is finished: run the same command without --sharpness before")
    # A file that the main process has just written may reach the others later.
    missing = broadcast([number for number, (run_dir, _) in enumerate(runs) if _read(run_dir) is None])
    for num_measured, (run_dir, config) in enumerate((runs[number] for number in missing), len(runs) - len(missing)):
        say(f"{num_measured} of {len(runs)} runs are measured")
        data = replace(config.data, eval_split="test")
        found = measure_run(replace(config, data=data), run_dir, SETTINGS, None, None)
        content = {"step": found.step, "settings": _settings(), "scores": found.scores}
        write_files(run_dir, {SCORES_FILE: json.dumps(content, indent=1).encode() + b"\n"})
        # Each run compiles programs of its own.
        jax.clear_caches()


def report_on(rows: Sequence[Row]) -> str:
    """Writes the table of what has been measured; returns it.

    Raises:
        ConfigError: the folder cannot be written.
    """
    folder, scores_of = rows[0].folder, {row.name: _scores(row) for row in rows}
    text = "\n".join([*markdown_table(list(_cells(scores_of))), "", _LEGEND]) + "\n"
    content = json.dumps({"settings": _settings(), "methods": scores_of}, indent=1) + "\n"
    write_files(folder, {TABLE_FILE: text.encode(), SCORES_FILE: content.encode()})
    return text


def _cells(scores_of: Mapping[str, Mapping[int, Scores]]) -> Iterator[list[str]]:
    """The rows of the table, of which the first is its head."""
    heads = ((name, f"{name} - {PLAIN}") for name in _QUANTITIES)
    yield ["method", *itertools.chain.from_iterable(heads), "runs"]
    for method, scores in scores_of.items():
        plain = scores_of.get(PLAIN, {}) if method != PLAIN else {}
        if scores:
            cells = ((_cell(each, scores), _difference(each, scores, plain)) for each in _QUANTITIES.values())
            yield [method, *itertools.chain.from_iterable(cells), str(len(scores))]


def _cell(quantity: _Quantity, scores: Mapping[int, Scores]) -> str:
    return quantity.text(float(np.mean(list(_values(quantity, scores).values()))))


def _difference(quantity: _Quantity, scores: Mapping[int, Scores], plain: Mapping[int, Scores]) -> str:
    difference = paired_difference(_values(quantity, scores), _values(quantity, plain))
    return "" if difference is None else difference.text(lambda value: quantity.text(value, "+"))


def _values(quantity: _Quantity, scores: Mapping[int, Scores]) -> dict[int, float]:
    return {seed: quantity.of(found) for seed, found in scores.items()}


def _scores(row: Row) -> dict[int, Scores]:
    """What has been measured, by seed."""
    found = {seed: _read(run_dir) for seed, run_dir, _ in _final_runs(row)}
    return {seed: scores for seed, scores in found.items() if scores is not None}


def _final_runs(row: Row) -> list[tuple[int, Path, Config]]:
    """(seed, folder, configuration) of the final runs that are finished and have not diverged."""
    return [
        (run.seed, folder_of(row.folder, run), config_of(run, row.config))
        for run, result in row.finished(row.final()).items()
        if not result.has_diverged
    ]


def _settings() -> dict[str, object]:
    return json.loads(json.dumps(asdict(SETTINGS)))


def _read(run_dir: Path) -> Scores | None:
    """The scores of a run; None if it has not been measured with these settings.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run_dir / SCORES_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        return content["scores"] if content["settings"] == _settings() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): remove it, and the run is measured again") from error
