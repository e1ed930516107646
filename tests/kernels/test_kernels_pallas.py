"""The Pallas kernels for TPUs, interpreted on the CPU: their numbers are right, and no copy races with arithmetic."""

import functools
import math

import interpreted_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gnp_kernels import AdamW, Sgd, blend_update, dots, pallas_leaves, pallas_plan, pallas_stream, perturb, squared_norm
from gnp_kernels.pallas_plan import Plan
from gnp_kernels.pallas_views import TILE, View
from gnp_kernels.squared_norm import cases as squared_norm_cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as tpu_interpreter
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

pytestmark = pytest.mark.usefixtures("unoptimized")

FLOAT, HALF = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
# A hundred leaves compile slowly, and one operation is enough to show that the kernels distinguish them.
PERTURB = [case for case in interpreted_cases.PERTURB if "many" not in case.id or case.id == "many small f32 float32"]
NORMS = [case for case in squared_norm_cases.cases() if "many" not in case.name]
UPDATES = [case for case in interpreted_cases.UPDATES if "many" not in case.id]
SHAPES = [
    (), (1,), (768,), (3072,), (24, 100), (5, 256), (129, 257), (256, 128), (64, 12, 64), (12, 64, 128), (3, 3, 8, 64),
    (7, 7, 3, 64), (1, 197, 128), (256, 40), (16, 16, 3, 128), (1, 1, 128), (2, 4, 8, 16), (3, 5, 7, 2, 128),
]  # fmt: skip


def named(case):
    return case.name


@pytest.fixture
def interpreted(monkeypatch):
    """Pallas' own interpreter."""
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))


def both(function, *args, **options):
    """The results of `function` in plain JAX and in Pallas, both compiled."""
    run = jax.jit(lambda implementation, *xs: function(*xs, implementation=implementation, **options), static_argnums=0)
    return run("xla", *args), run("pallas", *args)


def expect_close(got, expected, largest, num_ulps, dtype=FLOAT):
    """`got` differs from `expected` by at most `num_ulps` float32 roundings of the `largest` terms and one of `dtype`.

    Only one of them may contract products and sums, or flush subnormal numbers to zero.
    """
    for x, y, terms in zip(*map(jax.tree.leaves, (got, expected, largest)), strict=True):
        assert x.dtype == y.dtype
        x, y, terms = (np.asarray(z, np.float64) for z in (x, y, terms))
        with np.errstate(all="ignore"):
            bound = num_ulps * 2.0**-23 * np.abs(terms) + (dtype == HALF) * 2.0**-7 * np.abs(y) + 2.0**-125
            same = (np.abs(x - y) <= bound) | (x == y) | (np.isnan(x) & np.isnan(y))
        assert np.all(same), (x[~same][:5], y[~same][:5])


@pytest.mark.parametrize("case", PERTURB)
def test_perturbation_is_that_of_the_reference(case, interpreted):
    """Two roundings: within 1 ulp of |w| + |step|."""
    expected, got = both(perturb, case.params, case.grads, case.scale, **case.options)
    if "strange" in case.name:
        # Infinity times a subnormal number is infinite, but NaN if subnormals are flushed to zero.
        largest = np.asarray(case.params["strange"], np.float64)
        normal = np.abs(largest) >= 2.0**-126
        expected, got = ({"strange": np.where(normal, tree["strange"], 0)} for tree in (expected, got))
    largest = []
    for w, g in zip(jax.tree.leaves(case.params), jax.tree.leaves(case.grads), strict=True):
        w, g = np.asarray(w, np.float64), np.asarray(g, np.float64)
        with np.errstate(invalid="ignore"):
            largest.append(np.abs(w) + np.abs(case.scale * g * (w * w if case.options.get("adaptive") else 1.0)))
    expect_close(got, expected, largest, 2, jnp.dtype(case.options.get("dtype", FLOAT)))


@pytest.mark.parametrize("case", NORMS, ids=named)
def test_inner_products_are_those_of_the_reference(case, interpreted):
    """Sums of up to 150,000 products in another order: within 2^-20 of the product of the norms."""

    def products(a, b, **options):
        return *dots(a, b, **options), squared_norm(a, **options), squared_norm(a, weights=b, **options)

    expected, got = both(products, case.a, case.b)
    scale = np.sqrt(np.float64(expected[0]) * np.float64(expected[2]))
    np.testing.assert_allclose(got, expected, rtol=2.0**-20, atol=2.0**-20 * np.nan_to_num(scale, posinf=0))


@pytest.mark.parametrize("case", UPDATES)
def test_update_is_that_of_the_reference(case, interpreted):
    """A dozen roundings, contracted or not: within 16 ulps of the largest entry; copies within one of bfloat16."""
    expected, got = both(blend_update, case.params, case.g1, case.g2, case.moments, **case.options)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        x, y = (np.asarray(z, np.float64) for z in (x, y))
        tolerance = 2.0**-7 if y.dtype == HALF else 16 * 2.0**-23
        largest = np.max(np.abs(y), where=np.isfinite(y), initial=2.0**-100)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * min(largest, 1e6))


TREE = ((160, 256), (3, 5, 128), (300,), (7,), (4096,), (16, 1024))


def draw(shapes, seed, dtype=FLOAT):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def all_operations(implementation):
    """Results of every operation, with all kinds of leaves: several chunks, one chunk, whole leaves, vectors."""
    w, g1, g2, m = (draw(TREE, seed, HALF if seed == 1 else FLOAT) for seed in range(4))
    options = {"implementation": implementation}
    copied = perturb(w, g1, 0.1, dtype=HALF, **options)
    moments = (m, jax.tree.map(jnp.square, m))
    new = blend_update(w, g1, g2, moments, rule=AdamW(), c1=0.2, c2=0.8, learning_rate=0.1, **options)
    return squared_norm(w, weights=g1, **options), dots(g1, g2, **options), copied, new


@pytest.mark.slow
@pytest.mark.parametrize("num_cores", [1, 2])
def test_copies_do_not_race(num_cores, monkeypatch):
    """The TPU interpreter runs each copy as late as its wait allows, and knows which operations are ordered."""
    monkeypatch.setattr(pallas_leaves, "num_cores", lambda: num_cores)
    monkeypatch.setattr(pallas_plan, "STREAM_BYTES", 2 << 20)
    streamed = Plan(TREE, (FLOAT,) * 5, (FLOAT,) * 3, (0, 1, 2), 2, num_cores).streamed
    assert {leaf.num_chunks > 1 for leaf in streamed} == {True, False}
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=num_cores)
    with pltpu.force_tpu_interpret_mode(params):
        got = jax.block_until_ready(all_operations("pallas"))
    assert not tpu_interpreter.races.races_found
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(all_operations("xla")), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-2, atol=1e-5)


def test_races_are_found(monkeypatch):
    """Without the wait for the write before last, a new chunk overwrites memory that this write still reads."""
    monkeypatch.setattr(pallas_plan, "STREAM_BYTES", 1 << 20)
    monkeypatch.setattr(pallas_stream.Kernel, "_await_write", lambda *args: None)
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True, dma_execution_mode="eager")):
        jax.block_until_ready(perturb(draw(TREE, 0), draw(TREE, 1), 0.1, implementation="pallas"))
    assert tpu_interpreter.races.races_found
    pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_views_are_bijections(shape):
    view = View(shape)
    x = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    stored = view.as_stored(x)
    assert stored.shape == view.stored
    np.testing.assert_array_equal(view.from_stored(stored), x)
    if view.num_tiles:
        tiles = view.as_tiles(x)
        assert tiles.shape == (view.num_tiles, *TILE)
        np.testing.assert_array_equal(view.from_tiles(tiles), x)


def test_tiles_of_a_leaf_beyond_the_reach_of_32_bits_are_counted_in_32():
    """All arithmetic on tiles stays in int32; the test needs no array of that size."""
    shape = (90_112, 65_536)
    assert math.prod(shape) > 2**32
    plan = Plan((shape,), (FLOAT,), (FLOAT,), (None,), 0, num_cores=2)
    (leaf,) = plan.streamed
    num_tiles = leaf.num_chunks * leaf.num_tiles * plan.num_cores
    assert num_tiles == View(shape).num_tiles == math.prod(shape) // 1024 < 2**31


@pytest.mark.parametrize("num_cores", [1, 2])
def test_every_leaf_is_kept_once_and_vmem_holds_it(num_cores):
    """For trees with all kinds of arrays, each leaf is completely streamed, held whole, or left."""
    shapes = (*SHAPES, (50_257, 768), (21_843, 64), (0, 3), *((1000,),) * 300)
    plan = Plan(shapes, (FLOAT,) * 5, (FLOAT,) * 3 + (HALF,), (0, 1, 2, None), 2, num_cores)
    streamed = [leaf.leaf for leaf in plan.streamed]
    assert plan.kept == sorted({*streamed, *plan.whole})
    assert len(plan.kept) == len(streamed) + len(plan.whole)
    for leaf in plan.streamed:
        assert leaf.num_chunks * leaf.num_tiles * num_cores * 1024 == math.prod(shapes[leaf.leaf])
        assert leaf.num_tiles % leaf.num_unrolled == 0
    assert sum(plan.whole_bytes(plan.views[leaf]) for leaf in plan.whole) <= pallas_plan.WHOLE_BYTES
    for leaf in plan.whole:
        blocks = [math.prod(block.shape) * block.num for block in plan.blocks(leaf)]
        assert sum(blocks) == math.prod(shapes[leaf])
    assert {len(SHAPES), len(SHAPES) + 1, len(SHAPES) + 2}.isdisjoint(plan.kept)


def test_leaves_that_fit_no_call_are_left_to_xla(monkeypatch):
    """A large array that does not consist of tiles, and an array without elements, also give the right results."""
    monkeypatch.setattr(pallas_plan, "WHOLE_LEAF_BYTES", 4096)
    w, g = draw([(100, 77), (0,), (5,)], 0), draw([(100, 77), (0,), (5,)], 1)
    with pltpu.force_tpu_interpret_mode():
        got = perturb(w, g, 0.1, dtype=HALF, implementation="pallas")
    for x, y in zip(got, perturb(w, g, 0.1, dtype=HALF, implementation="xla"), strict=True):
        np.testing.assert_array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32))


dims = st.lists(st.sampled_from([1, 2, 3, 5, 8, 16, 64, 128, 136]), max_size=4).filter(lambda s: math.prod(s) < 70_000)


@pytest.mark.slow
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=st.lists(dims.map(tuple), min_size=1, max_size=4), grad=st.sampled_from([FLOAT, HALF]))
def test_any_shapes_and_types(interpreted, shapes, grad):
    w, g1, g2, m = (draw(shapes, seed, grad if seed in (1, 2) else FLOAT) for seed in range(4))
    options = {"rule": Sgd(0.9, True, 0.1), "c1": 0.2, "c2": 0.8, "learning_rate": 0.1, "copy_dtype": HALF}
    expected, got = both(lambda *xs, **kw: blend_update(*xs[:3], (xs[3],), **kw), w, g1, g2, m, **options)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        tolerance = 2.0**-7 if x.dtype == HALF else 2.0**-19
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=tolerance, atol=tolerance)
