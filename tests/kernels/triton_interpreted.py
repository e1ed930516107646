"""The Triton back end, interpreted, against the reference; `test_kernels_triton.py` runs this in a separate process.

By hand: TRITON_INTERPRET=1 pytest tests/kernels/triton_interpreted.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import triton
import triton.language as tl
from gnp_kernels import AdamW, Sgd, blend_update, dots, perturb, squared_norm, testing
from gnp_kernels.squared_norm import cases as squared_norm_cases
from gnp_kernels.triton_leaves import block_of, rest_of
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted_cases import PERTURB, UPDATES
from triton_shim import Memory, interpreted

SUM_TOLERANCE = 2.0**-18
"""Of sums of float32, of their terms' magnitudes: XLA on a CPU adds a thousand numbers one after the other."""

NUM_ULPS = 1
"""Of results that are not sums, float32 or bfloat16: both sides round each operation on its own, in the same order.
XLA takes some liberty with divisions by a scalar, in AdamW."""

NORMS = squared_norm_cases.cases()


@pytest.fixture(autouse=True)
def in_the_interpreter():
    with interpreted():
        yield


def named(case):
    return case.name


def check_sums(got, expected, scale):
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE * np.nan_to_num(scale, posinf=0))


@pytest.mark.parametrize("case", NORMS, ids=named)
def test_inner_products(case):
    expected = dots(case.a, case.b, implementation="xla")
    check_sums(dots(case.a, case.b, implementation="triton"), expected, np.sqrt(expected.a_a * expected.b_b))
    for weights in (None, case.b):
        norms = [squared_norm(case.a, weights=weights, implementation=i) for i in ("triton", "xla")]
        check_sums(norms[:1], norms[1:], 0)


def test_shares_scale_the_sums_of_leaves():
    """By powers of two, so that nothing else is rounded."""
    a, b = (testing.tree(testing.SHAPES["ragged"], jnp.float32, seed) for seed in (0, 1))
    shares = [1.0, 0.5, 0.25, 0.125]
    expected = dots(a, b, shares=shares, implementation="xla")
    check_sums(dots(a, b, shares=shares, implementation="triton"), expected, np.sqrt(expected.a_a * expected.b_b))


@pytest.mark.parametrize("case", [case for case in PERTURB if "strange" not in case.id])
def test_perturbation(case):
    moved, expected = (perturb(*case[1:4], **case.options, implementation=i) for i in ("triton", "xla"))
    assert testing.ulps(moved, expected) <= NUM_ULPS


@pytest.mark.parametrize("case", [case for case in PERTURB if "strange" in case.id])
def test_perturbation_of_strange_values(case):
    """As in NumPy: XLA flushes denormals to zero on a CPU, and GPUs do not."""
    w, g = (np.asarray(tree["strange"]) for tree in (case.params, case.grads))
    dtype = np.dtype(case.options.get("dtype", np.float32))
    x = w + np.float32(case.scale) * (g * np.abs(w) * np.abs(w) if case.options.get("adaptive") else g)
    moved = perturb(*case[1:4], **case.options, implementation="triton")["strange"]
    np.testing.assert_array_equal(np.asarray(moved, np.float32), x.astype(dtype).astype(np.float32))
    assert moved.dtype == dtype


@pytest.mark.parametrize("case", UPDATES)
def test_update(case):
    new, expected = (
        blend_update(case.params, case.g1, case.g2, case.moments, **case.options, implementation=i)
        for i in ("triton", "xla")
    )
    assert testing.ulps(new[:3], expected[:3]) <= NUM_ULPS
    check_sums(new[3:], expected[3:], 0)


SHAPES = st.lists(st.lists(st.sampled_from([0, 1, 5, 8, 33]), max_size=2).map(tuple), max_size=3).map(tuple)
TYPES = st.sampled_from([jnp.float32, jnp.bfloat16])


@settings(deadline=None, max_examples=10, derandomize=True)
@given(SHAPES, TYPES, TYPES, st.sampled_from([Sgd(), Sgd(0.9, True, 0.1), AdamW(weight_decay=0.1)]))
def test_any_tree(shapes, grad, copy, rule):
    w, g1, g2, *moments = (
        testing.tree(shapes, t, i) for i, t in enumerate((jnp.float32, grad, grad, *[jnp.float32] * 2))
    )
    moments = tuple(jax.tree.map(jnp.square, m) for m in moments)[: rule.num_moments]
    options = {"rule": rule, "c1": 0.3, "c2": 0.7, "learning_rate": 0.01, "copy_dtype": copy}
    moved, expected = (perturb(w, g1, 0.1, dtype=copy, implementation=i) for i in ("triton", "xla"))
    assert testing.ulps(moved, expected) <= NUM_ULPS
    new, expected = (blend_update(w, g1, g2, moments, **options, implementation=i) for i in ("triton", "xla"))
    assert testing.ulps(new[:3], expected[:3]) <= NUM_ULPS
    check_sums(new[3:], expected[3:], 0)


@triton.jit
def _places(block, counts, size, program, block_size: tl.constexpr, rest: tl.constexpr):
    """Indices and mask of a program, which would need a leaf of that size to be loaded from."""
    size, program = tl.load(size), tl.load(program)
    i, mask = rest_of(size, program, block_size) if rest else block_of(size, program, block_size)
    lane = tl.arange(0, i.shape[0])
    tl.store(block + lane, i)
    tl.store(counts + lane, mask.to(tl.int32))


@pytest.mark.parametrize("size", [2**31 + 5, 2**33 + 1029, 2**31 - 1, 1027, 8, 7])
def test_every_element_of_leaves_beyond_the_reach_of_32_bits_is_worked_on_once(size):
    """The last two programs of a leaf, its rest, and the first program, without a leaf of that size."""
    block_size, num_programs = 1024, -(-size // 1024)
    seen = []
    for program in sorted({0, max(0, num_programs - 2), num_programs - 1}):
        for rest, num_lanes in ((False, block_size), (True, 8)):
            out = Memory(np.zeros(num_lanes, np.int64)), Memory(np.zeros(num_lanes, np.int32))
            _places[(1,)](*out, Memory(np.int64([size])), Memory(np.int32([program])), block_size, rest)
            indices, counts = (np.asarray(x.host()) for x in out)
            seen += indices[counts == 1].tolist()
    tail = max(0, num_programs - 2) * block_size
    assert sorted(seen) == [*range(min(block_size, tail)), *range(tail, size)]
