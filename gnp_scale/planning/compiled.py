"""The step of a run, compiled for devices that are not there: its program, its memory and its arithmetic."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax

from gnp_scale.config import Config, ConfigError
from gnp_scale.data.dataset import Dataset
from gnp_scale.data.pipeline import check_divisible
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.models import registry
from gnp_scale.monitoring.flops import jaxpr_flops
from gnp_scale.planning.hardware import GIB, Cluster
from gnp_scale.planning.hlo import Program
from gnp_scale.training.compilation import misfits_are_config_errors
from gnp_scale.training.setup import Task
from gnp_scale.training.state import TrainState
from gnp_scale.training.step import make_train_step

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TOO_LARGE = re.compile(
    r"Used (?P<used>[\d.]+)(?P<unit>[KMGT]?) of|required for HLO temporaries \((?P<all>[\d.]+)(?P<of>[KMGT]?)\)"
)


class DoesNotFitError(Exception):
    """The compiler needs more memory than the chip has."""

    def __init__(self, needed_bytes: int) -> None:
        super().__init__(f"a step needs {needed_bytes / GIB:.2f} GiB of memory on each chip")
        self.needed_bytes = needed_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip."""

    parameters: int
    """In float32, and their copy in `train.gradient_dtype`."""
    optimizer: int
    other_state: int
    """Batch statistics, the moving average, and what the method keeps between steps."""
    batch: int
    gradients: int
    """Those that the method holds at a time: one in a plain step, two in a step of two passes."""
    activations: int
    """All other temporary arrays: activations, gathered parameters, and the workspace of kernels."""
    code: int
    """The program itself."""
    total: int
    """What the compiler allocates for arrays, and the program."""


@dataclass(frozen=True)
class Step:
    """A compiled step."""

    kind: StepKind
    program: Program
    memory: Memory


def make_task(config: Config, dataset: Dataset) -> Task:
    """The task of `config` on the current mesh.

    Raises:
        ConfigError: the components do not fit each other or the mesh.
    """
    check_divisible(config.data)
    model = registry.create(config.model, dataset.image_shape, dataset.num_classes, config.data.batch_size)
    return Task.with_network(config, dataset, model)


def mesh_of(config: Config, cluster: Cluster) -> jax.sharding.Mesh:
    """The mesh of `config` over the devices of `cluster`.

    Raises:
        ConfigError: it does not fit the devices, or their compiler is not installed.
    """
    return make_mesh(config.mesh, cluster.devices())


def compile_step(task: Task, cluster: Cluster, kind: StepKind) -> Step:
    """Compiles the step that the trainer runs; call it with the mesh set.

    Raises:
        ConfigError: a layer or the groups of the perturbation do not fit the mesh.
        DoesNotFitError: the program needs more memory than a chip has, and the compiler refuses it.
    """
    state, batch = task.abstract_state(), task.abstract_batch()
    with misfits_are_config_errors():
        traced = make_train_step(task).trace(state, batch, kind=kind)
    try:
        compiled = traced.lower(lowering_platforms=(cluster.chip.platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        raise _refusal(error, local_bytes((state, batch))) from error
    num_gradients = 2 if task.gnp.num_passes(kind) > 1 else 1
    memory = _memory(compiled.memory_analysis(), state, batch, num_gradients)
    return Step(kind, Program.parse(compiled.as_text()), memory)


def count_kinds(task: Task) -> Counter[StepKind]:
    """How many steps of each kind a run has."""
    return Counter(map(StepKind, task.planned_kinds))


def flops_of(task: Task, kind: StepKind) -> int:
    """FLOPs of products of matrices and convolutions in a step, over all chips, with what is computed again.

    Attention is counted as XLA computes it: a fused kernel has no count.
    """
    model = task.config.model
    if "attention" in registry.family_of(model.name).options:
        model = replace(model, attention="xla")
    plain = make_task(replace(task.config, model=model), task.dataset)
    traced = make_train_step(plain).trace(plain.abstract_state(), plain.abstract_batch(), kind=kind)
    return jaxpr_flops(traced.jaxpr)


def _refusal(error: jax.errors.JaxRuntimeError, num_argument_bytes: int) -> Exception:
    text = str(error)
    if match := _TOO_LARGE.search(text):
        if match["used"]:
            return DoesNotFitError(round(float(match["used"]) * _UNITS[match["unit"]]))
        return DoesNotFitError(round(float(match["all"]) * _UNITS[match["of"]]) + num_argument_bytes)
    if "RESOURCE_EXHAUSTED" in text:
        return ConfigError(
            f"the compiler refuses the step: {text.splitlines()[0][:200]}: choose other kernels or sizes"
        )
    return error


def _memory(stats: Any, state: TrainState, batch: Mapping[str, Any], num_gradients: int) -> Memory:
    params = local_bytes((state.params, state.copy))
    gradients = num_gradients * local_bytes(state.params if state.copy is None else state.copy)
    arguments = stats.argument_size_in_bytes
    # Tiles on TPUs are padded, so arguments may take more than their entries. The program itself is not among them.
    arrays = getattr(stats, "total_allocation_bytes", 0) or (
        arguments + stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    )
    code = stats.generated_code_size_in_bytes
    optimizer, inputs = local_bytes(state.opt_state), local_bytes(batch)
    other = local_bytes((state.batch_stats, state.ema, state.kept))
    rest = max(0, arrays - params - optimizer - other - inputs)
    # The gradients of a small network may stay on the chip.
    gradients = min(gradients, rest)
    return Memory(params, optimizer, other, inputs, gradients, rest - gradients, code, arrays + code)


def local_bytes(tree: Any) -> int:
    """Bytes of the shards of a tree on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
