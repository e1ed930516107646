"""The plain-JAX operations against float64 NumPy and optax; every kernel is compared with these operations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gnp_kernels import AdamW, Sgd, UnsupportedError, blend_update, dispatch, dots, perturb, squared_norm, testing
from gnp_kernels.blend_update import cases as blend_update_cases
from gnp_kernels.perturb import cases as perturb_cases
from gnp_kernels.squared_norm import cases as squared_norm_cases

pytestmark = pytest.mark.usefixtures("unoptimized")

PERTURB, NORMS, UPDATES = perturb_cases.cases(), squared_norm_cases.cases(), blend_update_cases.cases()


def named(case):
    return case.name


def doubles(tree):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


def expect(got, expected, dtype, num_ulps):
    """The result is within `num_ulps`, in `dtype`, of the float64 `expected`."""
    for x, y in zip(jax.tree.leaves(got), expected, strict=True):
        assert x.dtype == dtype
        with np.errstate(over="ignore", invalid="ignore"):
            assert testing.ulps(x, jnp.asarray(y, jnp.float32).astype(dtype)) <= num_ulps


@pytest.mark.parametrize("case", [case for case in NORMS if case.name != "strange"], ids=named)
def test_inner_products_are_those_of_float64(case):
    """Sums of blocks in float32 keep 6 digits, however many elements there are."""
    a, b = doubles(case.a), doubles(case.b)
    expected = [sum(np.sum(x * y) for x, y in zip(*pair, strict=True)) for pair in ((a, a), (a, b), (b, b))]
    scale = np.sqrt(float(expected[0]) * float(expected[2]))
    np.testing.assert_allclose(dots(case.a, case.b), expected, rtol=1e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(squared_norm(case.a), expected[0], rtol=1e-6)
    weighted = sum(np.sum((x * y) ** 2) for x, y in zip(a, b, strict=True))
    np.testing.assert_allclose(squared_norm(case.a, weights=case.b), weighted, rtol=1e-6)


@pytest.mark.parametrize("case", PERTURB, ids=named)
def test_perturbation_is_that_of_float64(case):
    """In float32 and then rounded once: 2 roundings are half an ulp each, 4 in the adaptive metric, where w is larger.

    Near cancellation an ulp of the sum is smaller than one of its terms, so distances are in ulps of |w| + |step|.
    """
    adaptive, mask = case.options.get("adaptive", False), case.options.get("mask")
    moved = perturb(case.params, case.grads, case.scale, **case.options)
    flags = jax.tree.leaves(mask) if mask is not None else [True] * len(jax.tree.leaves(moved))
    for x, w, g, chosen in zip(jax.tree.leaves(moved), doubles(case.params), doubles(case.grads), flags, strict=True):
        dtype = case.options.get("dtype", jnp.float32)
        assert x.dtype == dtype
        with np.errstate(all="ignore"):
            if dispatch.platform() != "gpu":
                # XLA flushes subnormal numbers to zero.
                w, g = (np.where(np.abs(y) < 2.0**-126, 0, y) for y in (w, g))
            step = np.float64(np.float32(case.scale)) * g * (w * w if adaptive else 1.0) * chosen
            expected = w + step if chosen else w
            bound = (
                float(jnp.finfo(dtype).eps) * np.abs(expected) + 3 * 2.0**-23 * (np.abs(w) + np.abs(step)) + 2.0**-126
            )
            x = np.asarray(x, np.float64)
            same = (np.abs(x - expected) <= bound) | (np.isnan(x) & np.isnan(expected)) | (x == expected)
            # Numbers too large for float32 are infinite there, and results from them are not finite.
            same |= (np.maximum(np.abs(step), np.abs(expected)) > 3.4e38) & ~np.isfinite(x)
            same |= ~np.isfinite(expected) & ~np.isfinite(x)
        assert np.all(same), (x[~same], expected[~same])


def numpy_update(w, g1, g2, moments, rule, c1, c2, learning_rate, count, decays):
    """One update of one leaf in float64, from the papers."""
    u = c1 * g1 + (0 if g2 is None or c2 == 0 else c2 * g2)
    if isinstance(rule, AdamW):
        m, v = rule.b1 * moments[0] + (1 - rule.b1) * u, rule.b2 * moments[1] + (1 - rule.b2) * u**2
        t = count + 1
        direction, moments = m / (1 - rule.b1**t) / (np.sqrt(v / (1 - rule.b2**t)) + rule.eps), (m, v)
    elif rule.momentum:
        m = rule.momentum * moments[0] + u
        direction, moments = (u + rule.momentum * m if rule.nesterov else m), (m,)
    else:
        direction = u
    return w - learning_rate * (direction + decays * rule.weight_decay * w), moments


@pytest.mark.parametrize("case", [case for case in UPDATES if "strange" not in case.name], ids=named)
def test_update_is_that_of_float64(case):
    """Moments and parameters within 1e-5 of float64 relative to their largest entry, the copy rounded from them."""
    options = {"count": 0, "decay_mask": None, "copy_dtype": None, "applies": True} | case.options
    new = blend_update(case.params, case.g1, case.g2, case.moments, **options)
    masks = jax.tree.leaves(options["decay_mask"]) or [True] * len(jax.tree.leaves(case.params))
    columns = [doubles(tree) for tree in (case.params, case.g1, *case.moments)]
    g2s = doubles(case.g2) if case.g2 is not None else [None] * len(columns[0])
    update = params = 0.0
    got_moments = [doubles(moment) for moment in new.moments]
    for number, (w, g1, *moments) in enumerate(zip(*columns, strict=True)):
        expected, expected_moments = numpy_update(
            w, g1, g2s[number], moments, options["rule"], options["c1"], options["c2"], options["learning_rate"],
            options["count"], masks[number],
        )  # fmt: skip
        got = doubles(new.params)[number]
        if not options["applies"]:
            expected, expected_moments = w, moments
        for x, y in ((got, expected), *zip([m[number] for m in got_moments], expected_moments, strict=False)):
            np.testing.assert_allclose(x, y, atol=1e-5 * max(1, np.max(np.abs(np.nan_to_num(y)), initial=0)))
        update, params = update + np.sum((expected - w) ** 2), params + np.sum(expected**2)
    np.testing.assert_allclose(new.update_squared_norm, update, rtol=1e-4)
    np.testing.assert_allclose(new.params_squared_norm, params, rtol=1e-5)
    if options["copy_dtype"] is not None:
        jax.tree.map(lambda x, w: np.testing.assert_array_equal(x, w.astype(x.dtype)), new.copy, new.params)


OPTAX = {
    "sgd": (Sgd(0.9, True, 1e-2), lambda: (optax.trace(0.9, True), optax.add_decayed_weights(1e-2))),
    "adamw": (AdamW(weight_decay=0.3), lambda: (optax.scale_by_adam(), optax.add_decayed_weights(0.3))),
}


@pytest.mark.parametrize("name", OPTAX)
def test_twenty_updates_are_those_of_optax(name):
    """Blend, clip, optimizer and rate of optax, one after the other, in ulps of a leaf's largest entry.

    Where the two gradients cancel, only rounding errors remain, and AdamW divides by their size: a few of 60,000
    entries differ by more (measured: 42 ulps), the mean by less than 2.
    """
    rule, parts = OPTAX[name]
    chain = optax.chain(optax.clip_by_global_norm(1.0), *parts(), optax.scale(-0.1))

    @jax.jit
    def with_optax(w, state, g1, g2):
        u = jax.tree.map(lambda x, y: 0.2 * x + 0.8 * y, g1, g2)
        updates, state = chain.update(u, state, w)
        return optax.apply_updates(w, updates), state

    @jax.jit
    def with_blend_update(w, moments, g1, g2, step):
        products = dots(g1, g2)
        norm = jnp.sqrt(0.04 * products.a_a + 0.32 * products.a_b + 0.64 * products.b_b)
        clip = jnp.where(norm < 1.0, 1.0, 1.0 / norm)
        new = blend_update(w, g1, g2, moments, rule=rule, c1=0.2 * clip, c2=0.8 * clip, learning_rate=0.1, count=step)
        return new.params, new.moments

    w = expected = testing.tree(testing.SHAPES["aligned"], jnp.float32, 0)
    state, moments = chain.init(w), (jax.tree.map(jnp.zeros_like, w),) * rule.num_moments
    for step in range(20):
        g1, g2 = (testing.tree(testing.SHAPES["aligned"], jnp.float32, 2 * step + i) for i in (1, 2))
        expected, state = with_optax(expected, state, g1, g2)
        w, moments = with_blend_update(w, moments, g1, g2, jnp.int32(step))
    for x, y in zip(jax.tree.leaves(w), jax.tree.leaves(expected), strict=True):
        distance = np.abs(x - y) / (2.0**-23 * np.max(np.abs(y)))
        assert np.max(distance) <= 128
        assert np.mean(distance) <= 2


@pytest.mark.parametrize("rule", blend_update_cases.RULES.values(), ids=str)
def test_a_step_that_does_not_apply_changes_nothing(rule):
    """Bitwise, even if the gradients are not finite."""
    w = testing.tree(testing.SHAPES["mixed"], jnp.float32, 0)
    moments = (jax.tree.map(jnp.abs, w),) * rule.num_moments
    g = jax.tree.map(lambda x: x * jnp.nan, w)
    new = blend_update(w, g, g, moments, rule=rule, c1=jnp.nan, c2=jnp.nan, learning_rate=0.1, applies=jnp.bool(False))
    jax.tree.map(np.testing.assert_array_equal, (new.params, new.moments), (w, moments))
    assert new.update_squared_norm == 0


def test_where_c2_is_zero_the_second_gradient_does_not_count():
    w, g1, g2 = jnp.ones(3), jnp.ones(3), jnp.float32([jnp.nan, jnp.inf, 1])
    new = blend_update(w, g1, g2, (), rule=Sgd(), c1=1.0, c2=jnp.float32(0), learning_rate=0.5)
    np.testing.assert_array_equal(new.params, [0.5, 0.5, 0.5])


TWO = {"a": jnp.ones(2), "b": jnp.ones(2)}
WRONG = {
    "other keys": (lambda: dots({"a": jnp.ones(2)}, {"b": jnp.ones(2)}), ValueError, "trees of one structure"),
    "other keys of a mask": (
        lambda: blend_update(TWO, TWO, None, (), rule=Sgd(), c1=1, learning_rate=1, decay_mask={"b": True, "c": False}),
        ValueError,
        "params and decay_mask are trees of one structure",
    ),
    "a mask of less": (
        lambda: perturb(TWO, TWO, 1.0, mask={"a": True}),
        ValueError,
        "params and mask are trees of one",
    ),
    "other shapes": (lambda: perturb(jnp.ones(2), jnp.ones(3), 1.0), ValueError, r"Got \(2,\) and \(3,\)"),
    "moments": (
        lambda: blend_update(jnp.ones(2), jnp.ones(2), None, (), rule=AdamW(), c1=1, learning_rate=1),
        ValueError,
        "keeps 2 moments. Got 0",
    ),
    "unknown": (lambda: squared_norm(jnp.ones(2), implementation="cuda"), UnsupportedError, "Got 'cuda'"),
    "type": (lambda: squared_norm(jnp.arange(2), implementation="pallas"), UnsupportedError, "pallas: .* int32"),
    "every one": (
        lambda: squared_norm(jnp.arange(2)),
        UnsupportedError,
        "pallas: runs on tpu, and this is cpu; triton: runs on .*; xla: has no arrays of type int32",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_said(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_the_automatic_choice_on_a_cpu_is_plain_jax():
    assert dispatch.choose("perturb", "auto", jnp.ones(2)) == "xla"
