"""Groups of examples, each with its own perturbation: whether they fit the mesh, and advice on their size."""

from collections.abc import Collection
from fractions import Fraction

from gnp_scale import mesh
from gnp_scale.config import Config, ConfigError
from gnp_scale.gnp import StepKind
from gnp_scale.gnp.microbatch import exact

LARGEST_GROUP = 512
"""Examples of one perturbation above which a run says so."""
USUAL_GROUP = 128
"""Examples of one perturbation that it suggests: those of a TPU core in arXiv 2010.01412."""


def group_advice(config: Config, kinds: Collection[StepKind], bn_group_size: int = 1) -> str | None:
    """What to set if a perturbation belongs to more than `LARGEST_GROUP` examples on a step of `kinds`, or None.

    Call it with the mesh set. The directions that an earlier step has left have only one group.

    Args:
        config: The configuration.
        kinds: The kinds of the steps of a run.
        bn_group_size: Consecutive examples that share batch statistics, which a group must not split.
    """
    section, batch_size = config.gnp, config.data.batch_size
    num_examples = round(batch_size / section.perturb_groups * section.ascent_fraction)
    # A norm gate judges the gradient of the whole batch.
    has_groups = section.direction in ("gradient", "friendly") and section.gate != "norm"
    if StepKind.FULL not in kinds or not has_groups or num_examples <= LARGEST_GROUP:
        return None
    advice, num_groups = "a larger --mesh.replica, and the same --gnp.perturb-groups", _usual_groups(config)
    if num_groups is not None:
        advice, num_cut = f"--gnp.perturb-groups {num_groups}", num_groups * exact(section.ascent_fraction).denominator
        if batch_size % (num_cut * bn_group_size):
            advice += f" --model.num-bn-groups {num_cut}"
    return (
        f"each perturbation belongs to {num_examples} examples (gnp.perturb_groups {section.perturb_groups}): the "
        f"larger such a group, the less the penalty gains (docs/method.md, Groups); {advice} makes it smaller, and is "
        "a different experiment"
    )


def mesh_advice(config: Config, kinds: Collection[StepKind]) -> str | None:
    """The mesh on which groups are computed side by side, if they are not and the devices allow it, or None.

    Call it with the mesh set.

    Args:
        config: The configuration.
        kinds: The kinds of the steps of a run.
    """
    num_groups, num_tensor = config.gnp.perturb_groups, mesh.current_axis_size(mesh.TENSOR)
    num_devices = mesh.current_axis_size(mesh.BATCH) * num_tensor
    is_side_by_side = num_groups == mesh.current_axis_size(mesh.REPLICA)
    if StepKind.FULL not in kinds or num_groups == 1 or is_side_by_side or num_devices % (num_groups * num_tensor):
        return None
    return (
        f"the {num_groups} groups of gnp.perturb_groups are computed one after the other on all {num_devices} devices, "
        f"which gather the parameters for each: with --mesh.replica {num_groups} --mesh.fsdp "
        f"{num_devices // num_groups // num_tensor} they are computed side by side, with the same numbers up to "
        "rounding, if the memory is enough (docs/method.md, Groups)"
    )


def num_parts(config: Config) -> int:
    """Into how many equal parts the groups, the accumulation and the share of the first pass cut a batch."""
    most = max(config.train.accumulate_steps, config.gnp.perturb_groups)
    return most * exact(config.gnp.ascent_fraction).denominator


def check_parts(config: Config, *, has_two_passes: bool) -> None:
    """Checks that the examples of each part of a step that is computed at a time divide over the current mesh.

    Raises:
        ConfigError: they do not.
    """
    num_groups = config.gnp.perturb_groups if has_two_passes else 1
    problem = _misfit(config, num_groups, exact(config.gnp.ascent_fraction) if has_two_passes else Fraction(1))
    if problem is not None:
        raise ConfigError(problem)


def _usual_groups(config: Config) -> int | None:
    """Number of groups that the mesh allows, with at most `USUAL_GROUP` examples for each perturbation if possible."""
    batch_size, section = config.data.batch_size, config.gnp
    fitting = [m for m in range(section.perturb_groups + 1, batch_size + 1) if _fits(config, m)]
    small = [m for m in fitting if batch_size * section.ascent_fraction <= USUAL_GROUP * m]
    return min(small, default=max(fitting, default=None))


def _fits(config: Config, num_groups: int) -> bool:
    """Whether the batch can be cut into `num_groups` groups on the current mesh."""
    parts = config.train.accumulate_steps
    is_nested = parts % num_groups == 0 or num_groups % parts == 0
    is_whole = config.data.batch_size % num_groups == 0
    return is_whole and is_nested and _misfit(config, num_groups, exact(config.gnp.ascent_fraction)) is None


def _misfit(config: Config, num_groups: int, share: Fraction) -> str | None:
    """What is wrong with `num_groups` equal groups and the `share` of each in the first pass, or None."""
    num_shards, parts = mesh.current_axis_size(mesh.BATCH), config.train.accumulate_steps
    if num_groups == mesh.current_axis_size(mesh.REPLICA):
        num_shards //= num_groups
    else:
        parts = max(1, parts // num_groups)
    size = config.data.batch_size // num_groups
    shards = f"over {num_shards} shards of the batch"
    if size % num_shards:
        return (
            f"gnp.perturb_groups is {num_groups}, and {size} examples of a group do not divide {shards}: "
            f"make --mesh.replica {num_groups}, or --gnp.perturb-groups smaller"
        )
    if size % (share.denominator * num_shards):
        return (
            f"gnp.ascent_fraction is {config.gnp.ascent_fraction}, and 1/{share.denominator} of the {size} examples of "
            f"a perturbation does not divide {shards}: choose another fraction, or a larger --data.batch-size"
        )
    size = int(size * share)
    if size % (parts * num_shards):
        return (
            f"train.accumulate_steps is {config.train.accumulate_steps}, and 1/{parts} of {size} examples does not "
            f"divide {shards}: accumulate in fewer steps, or choose a larger --data.batch-size"
        )
    return None
