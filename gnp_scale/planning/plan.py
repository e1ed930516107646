"""The plan of a run: its steps on a cluster, and what follows for the whole run."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from gnp_scale.config import Config, MeshConfig
from gnp_scale.data.dataset import Dataset
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import resolve
from gnp_scale.planning import absent_data
from gnp_scale.planning.compiled import Memory, compile_step, count_kinds, flops_of, make_task, mesh_of
from gnp_scale.planning.estimate import Estimate, estimate
from gnp_scale.planning.hardware import Cluster
from gnp_scale.training.setup import Task

IMAGES_PER_CORE_S = 500
"""Encoded images that a core reads, decodes and crops in a second (benchmarks/results/2026-11-27-input-pipeline.md)."""


@dataclass(frozen=True)
class PlannedStep:
    """A kind of step."""

    memory: Memory
    estimate: Estimate
    model_flops: float
    """Of all passes on one chip, without what is computed again."""
    num_unknown_loops: int = 0
    """Loops of the program whose trips are not known, so that they count once."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run."""

    config: Config
    cluster: Cluster
    mesh: MeshConfig
    """Without -1."""
    steps: Mapping[StepKind, PlannedStep]
    num_steps: Mapping[StepKind, int]
    """Of the run, by kind."""
    decodes_images: bool = True
    """Whether hosts decode images, which they do not for small sets in memory."""

    @property
    def dearest(self) -> StepKind:
        """The kind of step of the run that needs most memory."""
        return max(self.num_steps, key=lambda kind: self.steps[kind].memory.total)

    @property
    def fits(self) -> bool:
        """Whether all steps of the run fit into the memory of a chip."""
        return self.steps[self.dearest].memory.total <= self.cluster.chip.memory_bytes

    @property
    def hours(self) -> tuple[float, float]:
        """Of all steps, if traffic is hidden behind arithmetic and if it is not; without evaluation and checkpoints."""
        seconds = [(self.steps[kind].estimate, count) for kind, count in self.num_steps.items()]
        shortest, longest = (
            sum(count * getattr(each, name) for each, count in seconds) for name in ("shortest_s", "longest_s")
        )
        return shortest / 3600, longest / 3600

    @property
    def penalty_cost(self) -> float:
        """The time of the run over that of one of plain steps alone, if traffic is hidden."""
        plain_s = self.steps[StepKind.PLAIN].estimate.shortest_s
        return 3600 * self.hours[0] / (plain_s * sum(self.num_steps.values()))

    def images_per_s(self, kind: StepKind) -> float:
        """If traffic is hidden behind arithmetic."""
        return self.config.data.batch_size / self.steps[kind].estimate.shortest_s

    def mfu(self, kind: StepKind) -> float:
        """Model FLOP/s of a step over the peak of the chips, if traffic is hidden."""
        step = self.steps[kind]
        return step.model_flops / (step.estimate.shortest_s * self.cluster.chip.peak_flops_per_s)

    @property
    def cores_per_host(self) -> float:
        """Cores that decode images as fast as the fastest steps of the run consume them."""
        if not self.decodes_images:
            return 0.0
        images_per_s = max(self.images_per_s(kind) for kind in self.num_steps)
        return images_per_s / self.cluster.num_hosts / IMAGES_PER_CORE_S


def make_plan(config: Config, cluster: Cluster, dataset: Dataset) -> Plan:
    """Compiles the steps of a run for `cluster`, and a plain step beside them.

    Raises:
        ConfigError: the configuration does not fit the cluster.
        DoesNotFitError: a step needs more memory than a chip has, and the compiler refuses it.
    """
    mesh = mesh_of(config, cluster)
    with jax.set_mesh(mesh):
        task = make_task(config, dataset)
        kinds = count_kinds(task)
        steps = {kind: plan_step(task, kind, cluster, mesh) for kind in sorted({*kinds, StepKind.PLAIN}, reverse=True)}
    sizes, decodes = resolve(config.mesh, cluster.num_chips), absent_data.are_decoded(config.data)
    return Plan(config, cluster, sizes, steps, dict(kinds), decodes)


def plan_step(task: Task, kind: StepKind, cluster: Cluster, mesh: jax.sharding.Mesh) -> PlannedStep:
    """Compiles a step for `cluster`; call it with the mesh set.

    Raises:
        ConfigError: a layer does not fit the mesh.
        DoesNotFitError: the step needs more memory than a chip has, and the compiler refuses it.
    """
    step = compile_step(task, cluster, kind)
    flops = flops_of(task, kind) / cluster.num_chips
    model_flops = task.gnp.num_passes(kind) * task.flops_per_pass / cluster.num_chips
    return PlannedStep(step.memory, estimate(step, flops, cluster, mesh), model_flops, step.program.num_unknown_loops)
