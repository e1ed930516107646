"""The folder of a run: its configuration, `metrics.jsonl`, TensorBoard events and checkpoints."""

from pathlib import Path

from gnp_scale import recipe
from gnp_scale.config import Config, ConfigError
from gnp_scale.runtime import is_main_process

CONFIG_FILE = "config.json"

_FREE_TO_CHANGE = (
    *("mesh.", "checkpoint.", "divergence.", "train.kernels"),
    *("data.root", "data.num_threads", "data.prefetch_steps"),
)
"""Keys, or sections, that decide where and how a run computes, but not what."""


def claim(run_dir: Path, config: Config) -> None:
    """Makes `run_dir` the folder of `config`, or confirms that it is.

    Raises:
        ConfigError: the folder holds a run with another configuration.
    """
    if (run_dir / CONFIG_FILE).exists():
        changed = changes(stored_config(run_dir), config)
        if changed:
            raise ConfigError(
                f"{run_dir} holds a run with another configuration ({', '.join(changed)}): choose another --run-dir"
            )
    if is_main_process():
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            new_file = run_dir / f"{CONFIG_FILE}.new"
            new_file.write_text(recipe.to_json(config))
            new_file.replace(run_dir / CONFIG_FILE)
        except OSError as error:
            raise ConfigError(f"{run_dir} cannot be a run folder ({error}): choose another --run-dir") from error


def changes(old: Config, new: Config) -> list[str]:
    """What makes a run of `new` another run than one of `old`, as `key old -> new`; empty where it is the same run."""
    before, after = recipe.flatten(old), recipe.flatten(new)
    return [
        f"{key} {before[key]} -> {after[key]}"
        for key in after
        if after[key] != before[key] and not key.startswith(_FREE_TO_CHANGE)
    ]


def stored_config(run_dir: Path) -> Config:
    """The configuration of the run in `run_dir`.

    Raises:
        ConfigError: it holds no run, or a configuration that this version cannot read.
    """
    path = run_dir / CONFIG_FILE
    try:
        return recipe.from_json(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{run_dir} holds no run (it has no {CONFIG_FILE}): give the folder of a run") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
