"""The mean over the groups on a mesh axis: exact, at least in float32, and each number crosses the axis once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import collectives

from gnp_scale.gnp.axis_mean import mean_over_axis
from gnp_scale.mesh import FSDP, REPLICA, TENSOR, P, resharded

RNG = np.random.default_rng(0)
SHAPES = {"sharded": (8, 3), "whole": (3, 5), "one axis": (4,), "scalar": (), "bfloat16": (7,)}
SPECS = {"sharded": P(FSDP, None), "whole": P(None, None), "one axis": P(TENSOR), "scalar": P(), "bfloat16": P(None)}
FACTORS = {name: RNG.normal(size=shape).astype("f") for name, shape in SHAPES.items()}


def results(part, factors):
    """Numbers of the first example of a part."""
    trees = {name: resharded(factor * jnp.sum(part), SPECS[name]) for name, factor in factors.items()}
    return trees | {"bfloat16": trees["bfloat16"].astype(jnp.bfloat16)}


def mean(batch):
    return mean_over_axis(results, REPLICA, batch, jax.tree.map(jnp.asarray, FACTORS))


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 4, 1), (4, 1, 2), (8, 1, 1)])
def test_the_mean_is_exact_keeps_shardings_and_is_of_float32(shape, set_mesh):
    """Whatever divides over the other axes, and if these have one device."""
    set_mesh(*shape)
    sums = np.arange(1.0, shape[0] + 1, dtype="f")
    found = jax.jit(mean)(resharded(jnp.asarray(sums), P(REPLICA)))
    for name, factor in FACTORS.items():
        each = factor * sums.reshape(-1, *(1,) * factor.ndim)
        if name == "bfloat16":
            each = each.astype(jnp.bfloat16).astype("f")
        assert found[name].dtype == jnp.float32
        assert found[name].sharding.spec == SPECS[name]
        np.testing.assert_allclose(found[name], each.mean(axis=0), rtol=2**-7 if name == "bfloat16" else 1e-6)


def test_devices_on_which_a_result_is_the_same_share_it_out(set_mesh):
    """On 2 x 2 x 2 devices a quarter each: 4 of 15 numbers and a scalar, and 2 of 7 numbers of another type."""
    set_mesh(2, 2, 2)
    program = jax.jit(mean).lower(resharded(jnp.ones(2), P(REPLICA))).compile()
    (sum_over_replicas,) = [each for each in collectives(program.as_text()) if each.kind == "all-reduce"]
    assert sum_over_replicas.groups == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert sorted(size for _, size in sum_over_replicas.arrays) == sorted([4, 2, 12, 2])
