"""`gnp-scale export`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnp_scale.arguments import at_least
from gnp_scale.checks import local_path
from gnp_scale.commands.common import existing_run, on_cpu
from gnp_scale.config import Config, ConfigError, check
from gnp_scale.exit_codes import Exit

_ENDS = {"timm": ".safetensors", "npz": ".npz"}


def add(commands: Any) -> None:
    """Adds the command to the parsers `commands`."""
    export = commands.add_parser("export", help="write the weights of a run for other libraries", allow_abbrev=False)
    export.add_argument("run_dir", metavar="RUN", help="folder of the run")
    export.add_argument("out", metavar="OUT", help="the new file, .safetensors or .npz")
    export.add_argument(
        "--format", metavar="FORMAT", choices=_ENDS, default="timm", help="names of timm, or of big_vision (ViT, Mixer)"
    )
    export.add_argument("--step", type=at_least(0), help="which checkpoint (default: the newest)")
    export.add_argument("--average", metavar="N", type=at_least(1), default=1, help="average N checkpoints, up to that")
    export.set_defaults(command=_export, takes_flags=False)


def _export(options: argparse.Namespace, flags: Sequence[str]) -> int:
    run_dir, out = existing_run(options.run_dir), _new_file(options.out, options.format)
    on_cpu()
    from gnp_scale.checkpoint import load_whole_average
    from gnp_scale.run.files import replace_file
    from gnp_scale.run.run_dir import stored_config
    from gnp_scale.weights.saving import as_npz, as_safetensors

    config = stored_config(run_dir)
    step, whole = load_whole_average(run_dir, options.average, options.step)
    average = whole.get("ema")
    params, batch_stats = average or (whole["params"], whole.get("batch_stats"))
    state = params, batch_stats or {}
    data = as_npz(config, state) if options.format == "npz" else as_safetensors(config, state, step, _dataset(config))
    try:
        replace_file(out, data)
    except OSError as error:
        raise ConfigError(f"OUT {out} cannot be written ({error.strerror}): choose another file") from error
    print(f"{out}: the {'moving average' if average else 'parameters'} of {config.model.name} after step {step}")
    return Exit.FINISHED


def _new_file(text: str, form: str) -> Path:
    out = local_path("OUT", text)
    check(out.suffix == _ENDS[form], f"OUT is {text}: the name of a file of format {form} ends in {_ENDS[form]}")
    check(not out.exists(), f"OUT {text} exists: choose another name, or delete it first")
    check(out.parent.is_dir(), f"OUT is {text}: there is no folder {out.parent}, make it first")
    return out


def _dataset(config: Config) -> Any:
    """The data set of the run; None if it is not at hand."""
    from gnp_scale.data import sources
    from gnp_scale.run.streams import say

    try:
        return sources.load(config.data)
    except ConfigError as error:
        say(f"the file does not state the size and normalisation of images: {error}")
        return None
