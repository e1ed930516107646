"""Whether a run is the one that a plan describes, and what it took beside what was planned."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from gnp_scale import recipe
from gnp_scale.config import Config, ConfigError, check
from gnp_scale.mesh import AXES, resolve
from gnp_scale.planning.hardware import GIB

_FREE = (
    *("checkpoint.", "divergence.", "mesh."),
    *("data.root", "data.num_threads", "data.prefetch_steps", "data.max_damaged"),
    *("train.seed", "train.num_steps", "train.log_every_steps", "train.eval_every_steps", "train.profile_steps"),
)
"""Options on which the memory and time of a step do not depend; the mesh is compared after it is resolved."""
_LARGEST = 1e30
"""Of steps, seconds and bytes."""
_MOST_NAMED = 8
SETTLED_STEP = 100
"""First step whose time counts."""


def read(file: Path) -> dict[str, Any]:
    """The plan in `file`.

    Raises:
        ConfigError: there is none.
    """
    try:
        plan = json.loads(file.read_bytes())
        _look_at_all(plan)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{file} holds no plan ({reason}): write one with gnp-scale plan ... --json FILE") from error
    return plan


def _look_at_all(plan: Any) -> None:
    """Reads what is needed later, also after the run: a plan that lacks it must not end a finished one."""
    steps = plan["steps"].values()
    numbers = [step[name] for step in steps for name in ("num_steps", "shortest_s", "longest_s")]
    numbers += [plan["num_chips"], *(step["memory"]["total"] for step in steps)]
    has_types = isinstance(plan["device_kind"], str) and isinstance(plan["config"], dict)
    has_types = has_types and isinstance(plan["mesh"], dict)
    if not (has_types and all(isinstance(number, int | float) for number in numbers)):
        raise TypeError("its values have other types")
    if not all(0 <= number <= _LARGEST for number in numbers):
        raise ValueError("its numbers are negative, too large, or none")
    if not sum(step["num_steps"] for step in steps):
        raise ValueError("it has no steps")


def check_run(plan: Mapping[str, Any], config: Config) -> None:
    """Checks that this process is on the planned hardware and has the planned configuration.

    Raises:
        ConfigError: something differs.
    """
    kind, num_devices = jax.devices()[0].device_kind, jax.device_count()
    check(
        (kind, num_devices) == (plan["device_kind"], plan["num_chips"]),
        f"the plan is for {plan['num_chips']} x {plan['device_kind']}, and here are {num_devices} x {kind}: "
        "start it there, or leave --plan out",
    )
    mesh = resolve(config.mesh, num_devices)
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    check(
        sizes == plan["mesh"],
        f"the plan has the mesh {plan['mesh']}, and the run {sizes}: give the same --mesh flags to both",
    )
    # What JSON does not have, such as tuples, is compared as JSON has it.
    ours = json.loads(json.dumps(recipe.flatten(config)))
    changed = [key for key in ours if not key.startswith(_FREE) and ours[key] != plan["config"].get(key)]
    names = ", ".join(changed[:_MOST_NAMED]) + f" and {len(changed) - _MOST_NAMED} more" * (len(changed) > _MOST_NAMED)
    check(not changed, f"the run differs from its plan in {names}: plan it again, or leave --plan out")


def most_used_bytes() -> int | None:
    """The most memory that the first device of this process has used; None if it does not tell."""
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")


def comparison(plan: Mapping[str, Any], rows: list[dict[str, Any]], peak_bytes: int | None) -> str | None:
    """A line with the planned and the measured time and memory; None if the run logged no settled step.

    Args:
        plan: which the run has followed.
        rows: of its `metrics.jsonl`.
        peak_bytes: `most_used_bytes`.
    """
    measured = [row["perf/step_ms"] for row in rows if row["step"] > SETTLED_STEP and "perf/step_ms" in row]
    if not measured:
        return None
    steps = [step for step in plan["steps"].values() if step["num_steps"]]
    total = sum(step["num_steps"] for step in steps)
    low, high = (
        1e3 * sum(step["num_steps"] * step[key] for step in steps) / total for key in ("shortest_s", "longest_s")
    )
    line = f"planned {low:.1f} to {high:.1f} ms a step, measured {statistics.median(measured):.1f} ms"
    if peak_bytes is None:
        return line
    planned = max(step["memory"]["total"] for step in steps)
    return f"{line}; planned {planned / GIB:.2f} GiB on a device, used {peak_bytes / GIB:.2f} GiB"
