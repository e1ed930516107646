"""Estimates of cycles on absent TPUs, kernels against XLA: `python -m benchmarks.kernels_tpu [CHIP ...]`.

All numbers come from the TPU compiler (`make tpu-compiler`) and `benchmarks.tpu_estimates`; none was measured.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gnp_kernels
import jax
import jax.numpy as jnp
import numpy as np
from gnp_kernels import AdamW, Implementation
from gnp_kernels.pallas_plan import Plan

from benchmarks.tpu_estimates import CHIPS, Chip, Kernel, Xla, print_table, schedules
from gnp_scale.config import MeshConfig, ModelConfig
from gnp_scale.mesh import make_mesh
from gnp_scale.models import registry

MODELS = {"ViT-B": "vit_b", "ResNet-50": "resnet50"}
CLIP_NORM, COEFFICIENT, RADIUS, LEARNING_RATE = 1.0, 0.8, 0.05, 1e-3
FLOAT = jnp.dtype(jnp.float32)
PLANS: dict[str, dict[str, Any]] = {
    "gnp_squared_norm": {"in_dtypes": (FLOAT,), "out_dtypes": (), "sources": (), "num_sums": 1},
    "gnp_perturb": {"in_dtypes": (FLOAT,) * 2, "out_dtypes": (FLOAT,), "sources": (None,), "num_sums": 0},
    "gnp_dots": {"in_dtypes": (FLOAT,) * 2, "out_dtypes": (), "sources": (), "num_sums": 3},
    "gnp_blend_update": {"in_dtypes": (FLOAT,) * 5, "out_dtypes": (FLOAT,) * 3, "sources": (0, 1, 2), "num_sums": 2},
}


def perturb(implementation: Implementation, w: Any, g: Any) -> Any:
    """The perturbation, with the norm that it needs."""
    norm = jnp.sqrt(gnp_kernels.squared_norm(g, implementation=implementation))
    return gnp_kernels.perturb(w, g, RADIUS / norm, implementation=implementation)


def update(implementation: Implementation, w: Any, moments: Any, g1: Any, g2: Any) -> Any:
    """Blend, clipping by the global norm, and AdamW. XLA drops the two norms that the kernel also computes."""
    c1, c2 = 1 - COEFFICIENT, COEFFICIENT
    dots = gnp_kernels.dots(g1, g2, implementation=implementation)
    norm = jnp.sqrt(c1 * c1 * dots.a_a + 2 * c1 * c2 * dots.a_b + c2 * c2 * dots.b_b)
    clip = jnp.minimum(1.0, CLIP_NORM / norm)
    new = gnp_kernels.blend_update(
        w, g1, g2, moments, rule=AdamW(weight_decay=0.3), c1=c1 * clip, c2=c2 * clip,
        learning_rate=LEARNING_RATE, count=7, implementation=implementation,
    )  # fmt: skip
    return new.params, new.moments


HEADER = """\
| chip | model | operation | XLA, cycles | kernels, cycles | ratio | at XLA's bandwidth | memory floor | bundles | \
worst block | vector spills |
|---|---|---|---|---|---|---|---|---|---|---|"""


def rows(chip: Chip, dump: Path) -> Iterator[list[str]]:
    """The cells for each model and operation."""
    shapes_of = {title: parameter_shapes(model) for title, model in MODELS.items()}
    mesh = make_mesh(MeshConfig(), chip.devices()[:1])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        slope = xla_bytes_per_cycle(mesh)
        for title, shapes in shapes_of.items():
            tree = [jax.ShapeDtypeStruct(shape, FLOAT, sharding=_whole(mesh)) for shape in shapes]
            yield [title, *compare(perturb, (tree, tree), (), shapes, chip, slope, dump)]
            yield [title, *compare(update, (tree, (tree, tree), tree, tree), (0, 1), shapes, chip, slope, dump)]


def compare(
    program: Callable[..., Any],
    arguments: tuple[Any, ...],
    donated: tuple[int, ...],
    shapes: tuple[tuple[int, ...], ...],
    chip: Chip,
    slope: float,
    dump: Path,
) -> list[str]:
    """One row: a program by XLA, and with kernels."""
    xla, rest = (
        Xla.of(_compiled(lambda *xs: program(implementation, *xs), arguments, donated))  # noqa: B023
        for implementation in ("xla", "pallas")
    )
    num_cores = chip.devices()[0].num_cores
    kernels = [Kernel.of(x, Plan(shapes, **PLANS[x.name], num_cores=num_cores), chip) for x in schedules(dump)]
    for file in dump.glob("*"):
        file.unlink()
    by_chip, by_xla = (
        rest.cycles + sum(kernel.cycles(speed) + xla.call_cycles for kernel in kernels)
        for speed in (chip.bytes_per_cycle, slope)
    )
    return [
        program.__name__, f"{xla.cycles:,}", f"{by_chip:,.0f}", f"{by_chip / xla.cycles:.2f}",
        f"{by_xla / xla.cycles:.2f}", f"{sum(kernel.num_bytes for kernel in kernels) / chip.bytes_per_cycle:,.0f}",
        f"{sum(kernel.num_bundles for kernel in kernels):,}", f"{max(kernel.worst_block for kernel in kernels):.2f}",
        str(sum(kernel.num_vector_spills for kernel in kernels)),
    ]  # fmt: skip


def parameter_shapes(model: str) -> tuple[tuple[int, ...], ...]:
    """Shapes of all parameters of a network for ImageNet."""
    network = registry.create(ModelConfig(model), (224, 224, 3), 1000, 1)
    return tuple(x.shape for x in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0))[0]))


def xla_bytes_per_cycle(mesh: jax.sharding.Mesh) -> float:
    """The bandwidth that XLA assumes: the slope of its estimates for w + c g over large arrays."""
    num_rows, num_columns = 4096, 8192
    cycles = []
    for factor in (1, 2):
        x = jax.ShapeDtypeStruct((factor * num_rows, num_columns), FLOAT, sharding=_whole(mesh))
        c = jax.ShapeDtypeStruct((), FLOAT, sharding=_whole(mesh))
        cycles.append(Xla.of(_compiled(lambda w, g, c: w + c * g, (x, x, c), ())).cycles)
    return 3 * FLOAT.itemsize * num_rows * num_columns / float(np.diff(cycles)[0])


def _whole(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(mesh, jax.P())


def _compiled(program: Callable[..., Any], arguments: tuple[Any, ...], donated: tuple[int, ...]) -> str:
    traced = jax.jit(program, donate_argnums=donated).trace(*arguments)
    return str(traced.lower(lowering_platforms=("tpu",)).compile().as_text())


if __name__ == "__main__":
    print_table("benchmarks.kernels_tpu", __doc__, HEADER, list(CHIPS), rows)
