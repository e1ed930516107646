"""What several commands share."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gnp_scale.checks import split_recipe
from gnp_scale.config import Config, ConfigError, DataConfig
from gnp_scale.run.store import Folder, run_folder


def default_run_dir(options: argparse.Namespace, prefix: str = "") -> Path:
    """The folder of a run of the recipe, if the command names none."""
    path, function = split_recipe(options.recipe)
    return Path("runs") / f"{prefix}{Path(path).stem}-{function}"


def import_jax() -> Any:
    """Imports JAX, which reads environment variables and refuses some values of them."""
    try:
        import jax
    except ValueError as error:
        names = ", ".join(name for name in os.environ if name.startswith("JAX_"))
        raise ConfigError(f"JAX does not start with the variables {names}: {error}") from error
    return jax


def on_cpu() -> None:
    """Keeps this process away from the accelerators, which a run may be using."""
    import_jax().config.update("jax_platforms", "cpu")


def existing_run(text: str, option: str = "RUN") -> Folder:
    """The folder of the run that `text` names, which was given as `option`.

    Raises: ConfigError: it names none.
    """
    if ".py:" in text:
        raise ConfigError(f"{text} is a recipe: give the folder of its run, runs/NAME or that of --run-dir")
    return run_folder(option, text)


def config_of_run(run_dir: Folder, flags: Sequence[str], command: str, usage: str, options: Sequence[str]) -> Config:
    """The configuration of a run for the command `command` with `usage` and `options`, with flags of data and mesh.

    If the flags name another data set, all of its examples are chosen, unless other flags choose some. If they leave
    nothing to draw, the seed of the run's draw is left out.

    Raises: ConfigError: a flag belongs to another section.
    """
    from gnp_scale import recipe
    from gnp_scale.run.run_dir import stored_config

    for flag in flags:
        if flag.startswith("--") and not flag.startswith(("--data.", "--mesh.", "--help")):
            raise ConfigError(f"{command} has no option {flag}: only those of data and mesh; the run decides the rest")
    stored, usage = stored_config(run_dir), f"gnp-scale {command} RUN {usage}"

    def override(data: DataConfig) -> Config:
        return recipe.override(replace(stored, data=data), flags, usage, options)

    try:
        config = override(stored.data)
    except ConfigError:
        config = override(replace(stored.data, draw_seed=DataConfig.draw_seed))
    return config if config.data.name == stored.data.name else override(stored.data.with_all_examples())
