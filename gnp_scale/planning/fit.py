"""What to change so that a run fits into the memory of a chip: changes that keep the numbers, tried in order."""

from collections.abc import Callable, Iterator, Sequence
from typing import get_args

import jax

from gnp_scale import recipe
from gnp_scale.config import Config, ConfigError
from gnp_scale.config.model import Remat
from gnp_scale.data.dataset import Dataset
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import resolve
from gnp_scale.models import registry
from gnp_scale.planning.compiled import DoesNotFitError, compile_step, count_kinds, local_bytes, make_task, mesh_of
from gnp_scale.planning.hardware import GIB, Cluster


def fit(config: Config, cluster: Cluster, dataset: Dataset, say: Callable[[str], None]) -> list[str]:
    """The flags with which the run fits; empty if it does without. They recompute, shard or accumulate more.

    Args:
        config: of the run.
        cluster: where it is to run.
        dataset: its images, or their sizes alone.
        say: gets a line for each attempt.

    Raises:
        ConfigError: it fits with none of them, or does not fit the cluster at all.
    """
    limit, kept = cluster.chip.memory_bytes, {}
    for change in ({}, *_changes(config, cluster)):
        flags = [word for flag in (kept | change).items() for word in flag]
        name = " ".join(flags) or "as it is"
        try:
            needed = needed_bytes(recipe.override(config, flags, "gnp-scale plan"), cluster, dataset)
        except ConfigError as error:
            if not flags:
                raise
            say(f"{name}: not possible: {error}")
            continue
        say(f"{name}: {'at least ' * (needed > limit)}{needed / GIB:.2f} of {limit / GIB:.2f} GiB")
        if needed <= limit:
            return flags
        kept |= change
    raise ConfigError(
        f"the run does not fit {cluster.name}, also with more recomputation, sharding and microbatches: "
        "choose more chips, a smaller batch or a larger --mesh.tensor"
    )


def needed_bytes(config: Config, cluster: Cluster, dataset: Dataset) -> int:
    """Memory that the dearest step of a run takes on a chip, also where the compiler refuses it.

    If the state and the batch alone are too much, nothing is compiled, and it is theirs.

    Raises:
        ConfigError: the configuration does not fit the cluster.
    """
    with jax.set_mesh(mesh_of(config, cluster)):
        task = make_task(config, dataset)
        arguments = local_bytes((task.abstract_state(), task.abstract_batch()))
        if arguments > cluster.chip.memory_bytes:
            return arguments
        dearest = StepKind.FULL if StepKind.FULL in count_kinds(task) else StepKind.PLAIN
        try:
            return compile_step(task, cluster, dearest).memory.total
        except DoesNotFitError as error:
            return error.needed_bytes


def _changes(config: Config, cluster: Cluster) -> Iterator[dict[str, str]]:
    """Flags and their values in the order in which they are tried. Those that are possible are kept for the next."""
    for remat in _more_recomputation(config, cluster):
        yield {"--model.remat": remat}
    mesh = resolve(config.mesh, cluster.num_chips)
    if mesh.replica > cluster.num_slices:
        yield {"--mesh.replica": str(cluster.num_slices), "--mesh.fsdp": "-1"}
    accumulate = 2 * config.train.accumulate_steps
    while config.data.batch_size >= accumulate * mesh.replica * mesh.fsdp:
        yield {"--train.accumulate-steps": str(accumulate)}
        accumulate *= 2


def _more_recomputation(config: Config, cluster: Cluster) -> Sequence[str]:
    """Values of `model.remat` that keep less than that of `config`. Offloading was compiled for TPUs alone."""
    if "remat" not in registry.family_of(config.model.name).options:
        return ()
    order = get_args(Remat)
    more = order[order.index(config.model.remat) + 1 :]
    return more if cluster.chip.platform == "tpu" else [remat for remat in more if remat != "offload"]
