"""What a run has reached, in a file of its folder."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gnp_scale import recipe
from gnp_scale.config import Config, ConfigError, check
from gnp_scale.run.files import replace_file
from gnp_scale.run.layout import CONFIG_FILE
from gnp_scale.run.run_dir import changes, stored_config

OUTCOME_FILE = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """Accuracies are shares of images; those of a run that diverged are None."""

    num_passes: float
    """Forward and backward passes over a batch."""
    flops: float | None = None
    """Of all passes."""
    seconds: float | None = None
    """In steps that were kept, and waiting for their batches."""
    validation: Mapping[str, float] | None = None
    """On the images held out, by step."""
    train: float | None = None
    """Of the last checkpoint on the images that it was trained on, with their labels."""
    test_best: float | None = None
    """Of the checkpoint that is best on validation, on the test images. Runs that tune have none."""
    test_final: float | None = None
    """The same of the last checkpoint."""

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError: the file of a finished run has other content."""
        numbers = {name: value for name, value in vars(self).items() if name != "validation" and value is not None}
        numbers["num_passes"] = self.num_passes
        if self.validation is not None:
            numbers |= {f"validation {int(step)}": share for step, share in self.validation.items()}
            if not self.validation:
                raise ValueError("it has no evaluation")
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}")

    @property
    def has_diverged(self) -> bool:
        """Whether the run has no result, because a loss or a gradient was not finite."""
        return self.validation is None

    @property
    def best(self) -> float:
        """The accuracy of the best evaluation on validation."""
        assert self.validation is not None, "the run has diverged"
        return max(self.validation.values())


def write(run_dir: Path, outcome: Outcome) -> None:
    """Keeps the outcome of the run in `run_dir`."""
    replace_file(run_dir / OUTCOME_FILE, json.dumps(asdict(outcome), indent=2).encode() + b"\n")


def read(run_dir: Path, config: Config) -> Outcome | None:
    """The outcome of the run of `config` in `run_dir`; None if it is not finished, or not begun.

    Raises:
        ConfigError: the folder holds a run of another configuration, or the file is damaged.
    """
    path = run_dir / OUTCOME_FILE
    try:
        found = Outcome(**json.loads(path.read_bytes())) if path.exists() else None
        if found is None and not (run_dir / CONFIG_FILE).exists():
            return None
        # There are hundreds of them: reading a configuration takes milliseconds, and comparing its text less.
        is_same = (run_dir / CONFIG_FILE).read_text() == recipe.to_json(config)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): remove it, and the run is measured again") from error
    changed = [] if is_same else changes(stored_config(run_dir), config)
    check(
        not changed,
        f"{run_dir} was run with other settings ({', '.join(changed)}): give the --steps of that benchmark, or another "
        f"--out; or remove its method's runs with --again --only {run_dir.parent.name}",
    )
    return found
