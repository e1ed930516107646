"""The steps of a plan with other methods, and on other numbers of chips, each compiled.

The batch of the recipe stays, so fewer chips have more images each (strong scaling).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import jax

from gnp_scale.config import Config, ConfigError, GnpConfig, MeshConfig
from gnp_scale.data.dataset import Dataset
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import resolve
from gnp_scale.planning.compiled import DoesNotFitError, make_task, mesh_of
from gnp_scale.planning.hardware import GIB, Cluster
from gnp_scale.planning.plan import Plan, PlannedStep, plan_step

USUAL_ALPHA = 0.8
"""Of GNP, if the recipe is plain."""
_SIZES = {
    "v5e": {8: ("v5e:2x4", 1), 64: ("v5e:8x8", 1), 512: ("v5e:16x16", 2), 4096: ("v5e:16x16", 16)},
    "v5p": {8: ("v5p:2x2x2", 1), 64: ("v5p:4x4x4", 1), 512: ("v5p:8x8x8", 1), 4096: ("v5p:16x16x16", 1)},
    "v6e": {8: ("v6e:2x4", 1), 64: ("v6e:8x8", 1), 512: ("v6e:16x16", 2), 4096: ("v6e:16x16", 16)},
    "h100": {num: (f"h100:8x{num // 8}", 1) for num in (8, 64, 512, 4096)},
    "h200": {num: (f"h200:8x{num // 8}", 1) for num in (8, 64, 512, 4096)},
}
"""Clusters of each chip by number of chips: the topology, and slices. A slice has at most 256 chips of v5e or v6e."""
type _Say = Callable[[str], None]


@dataclass(frozen=True)
class Alternatives:
    """What was compiled beside a plan."""

    methods: Mapping[str, PlannedStep]
    """By the words of a method, on the cluster of the plan."""
    sizes: Mapping[int, PlannedStep]
    """Steps of GNP with one perturbation, by number of chips."""
    left_out: Mapping[str, str]
    """What has no step, and why."""


def compile_alternatives(plan: Plan, dataset: Dataset, say: _Say) -> Alternatives:
    """Compiles the steps of the other methods and sizes, one after the other; `say` gets a line before each."""
    left_out: dict[str, str] = {}
    methods, configs = {"plain": plan.steps[StepKind.PLAIN]}, method_configs(plan)
    for name, config in configs.items():
        step = _known(plan, config) or _compile(name, config, plan.cluster, dataset, say, left_out)
        methods |= {name: step} if step else {}
    sizes = {}
    for cluster in other_clusters(plan):
        name = f"GNP on {cluster.num_chips:,} chips"
        config = replace(configs["GNP"], mesh=mesh_on(plan.mesh, cluster))
        step = _compile(name, config, cluster, dataset, say, left_out)
        sizes |= {cluster.num_chips: step} if step else {}
    sizes |= {plan.cluster.num_chips: methods["GNP"]} if "GNP" in methods else {}
    return Alternatives(methods, dict(sorted(sizes.items())), left_out)


def method_configs(plan: Plan) -> dict[str, Config]:
    """The run of `plan` with SAM, with GNP, and with GNP in groups, by their words; its other options of the method
    are left out.

    The groups are the replicas of the mesh; a mesh without replicas gets one replica on each shard of the batch.
    """
    section, mesh = plan.config.gnp, plan.mesh
    r = section.r or GnpConfig.r
    alpha = section.alpha if section.lam is None else section.lam / r
    sam, gnp = GnpConfig(r=r, alpha=1.0), GnpConfig(r=r, alpha=alpha or USUAL_ALPHA)
    parted = mesh if mesh.replica > 1 else MeshConfig(mesh.fsdp, 1, mesh.tensor)
    groups = replace(gnp, perturb_groups=parted.replica)
    return {
        "SAM": replace(plan.config, gnp=sam),
        "GNP": replace(plan.config, gnp=gnp),
        f"GNP, {parted.replica} groups": replace(plan.config, gnp=groups, mesh=parted),
    }


def other_clusters(plan: Plan) -> list[Cluster]:
    """Clusters of other sizes of the same chip, over which the batch of `plan` divides evenly."""
    sizes = _SIZES[plan.cluster.name.partition(":")[0]]
    clusters = [Cluster(*sizes[num]) for num in sizes if num != plan.cluster.num_chips]
    is_possible = {num: num % plan.mesh.tensor == 0 and not plan.config.data.batch_size % num for num in sizes}
    return [cluster for cluster in clusters if is_possible[cluster.num_chips]]


def mesh_on(mesh: MeshConfig, cluster: Cluster) -> MeshConfig:
    """`mesh` on another number of chips: parameters over as many chips as before, or over all of fewer chips."""
    fsdp = min(mesh.fsdp, cluster.num_chips // mesh.tensor)
    return MeshConfig(cluster.num_chips // (fsdp * mesh.tensor), fsdp, mesh.tensor)


def _known(plan: Plan, config: Config) -> PlannedStep | None:
    """The step of the plan, if its method is that of `config`."""
    is_same = config.gnp == plan.config.gnp and resolve(config.mesh, plan.cluster.num_chips) == plan.mesh
    return plan.steps.get(StepKind.FULL) if is_same else None


def _compile(
    name: str, config: Config, cluster: Cluster, dataset: Dataset, say: _Say, left_out: dict[str, str]
) -> PlannedStep | None:
    """The step of two passes; or None, with the reason in `left_out`."""
    say(f"compiling {name}: may take minutes")
    limit, step = cluster.chip.memory_bytes, None
    try:
        mesh = mesh_of(config, cluster)
        with jax.set_mesh(mesh):
            step = plan_step(make_task(config, dataset), StepKind.FULL, cluster, mesh)
    except DoesNotFitError as error:
        needed = error.needed_bytes
    except ConfigError as error:
        left_out[name] = str(error)
        return None
    else:
        needed = step.memory.total
    if needed <= limit:
        return step
    left_out[name] = f"needs {needed / GIB:.1f} of {limit / GIB:.1f} GiB"
    return None
