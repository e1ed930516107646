"""Every variant of the method against an oracle written from its paper: a new variant adds a row."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from mlp import BATCH_OF_16, PARAMS, float64, mlp_loss, on_device, ulps
from oracles import asam, euclidean, friendly, layerwise, only, unnormalised, vasso, with_rise, wsam

from gnp_scale.gnp import Gnp, NormGate, StepKind, bernoulli, every, penalize, window
from gnp_scale.mesh import REPLICA, P, sharding

pytestmark = pytest.mark.usefixtures("unoptimized")

NUM_STEPS, RATE, DECAY = 5, 0.3, 0.9
two_passes, looksam, msam = (partial(rule, BATCH_OF_16) for rule in (oracles.two_passes, oracles.looksam, oracles.msam))
ssam, fsam, aesam = (partial(rule, BATCH_OF_16) for rule in (oracles.ssam, oracles.fsam, oracles.aesam))


class Row(NamedTuple):
    gnp: Gnp
    oracle: oracles.Rule
    num_accumulated: int = 1


def is_bias(path: str) -> bool:
    return "bias" in path


def is_kernel(path: str) -> bool:
    return "kernel" in path


RISE = optax.linear_schedule(0.0, 0.4, 4)
FALL = optax.cosine_decay_schedule(0.4, NUM_STEPS)


def rise(step: int) -> float:
    return 0.4 * min(step / 4, 1)


def fall(step: int) -> float:
    return 0.2 * (1 + np.cos(np.pi * step / NUM_STEPS))


BLENDS = {
    "paper": Row(Gnp(r=0.2, alpha=0.8), two_passes(0.2, 0.8)),
    "paper, lam": Row(Gnp(r=0.2, lam=0.1), two_passes(0.2, 0.5)),
    "sam": Row(Gnp(r=0.2, alpha=1), two_passes(0.2, 1.0)),
    "unit_norm": Row(Gnp(r=0.2, alpha=0.8, blend="unit_norm"), two_passes(0.2, 0.8, oracles.unit_norm)),
    "gsam": Row(Gnp(r=0.2, alpha=0.4, blend="gsam"), two_passes(0.2, 0.4, oracles.gsam)),
    "gsam, alpha 0": Row(Gnp(r=0.2, alpha=0.0, blend="gsam"), two_passes(0.2, 0.0, oracles.gsam)),
    "decoupled": Row(Gnp(r=0.2, alpha=0.8, blend="decoupled"), two_passes(0.2, 0.8, wsam)),
    "decoupled, alpha 2": Row(Gnp(r=0.2, alpha=2.0, blend="decoupled"), two_passes(0.2, 2.0, wsam)),
}
DIRECTIONS = {
    "momentum": Row(Gnp(r=0.2, alpha=1.0, direction="momentum"), msam(0.2)),
    "reused": Row(Gnp(r=0.2, alpha=0.8, direction="reused", reuse_every=3), looksam(0.2, 0.8, 3)),
    "stale": Row(Gnp(r=0.2, alpha=1.0, direction="stale"), ssam(0.2)),
    "friendly": Row(Gnp(r=0.2, alpha=0.8, direction="friendly"), fsam(0.2, 0.8, 0.9, friendly)),
    "average": Row(
        Gnp(r=0.2, alpha=1.0, direction="friendly", gradient_weight=0, average_weight=1, average_decay=0.6),
        fsam(0.2, 1.0, 0.6, vasso),
    ),
}
RADII = {
    "rise of the loss": Row(Gnp(r=0.05, alpha=0.8, radius="loss"), two_passes(0.05, 0.8, ascent=with_rise(np.inf))),
    "largest radius": Row(
        Gnp(r=0.05, alpha=0.8, radius="loss", max_r=0.01), two_passes(0.05, 0.8, ascent=with_rise(0.01))
    ),
    "not normalised": Row(Gnp(r=0.5, alpha=0.8, radius="gradient"), two_passes(0.5, 0.8, ascent=unnormalised)),
}
METRICS_AND_MASKS = {
    "adaptive": Row(Gnp(r=0.2, alpha=0.8, metric="adaptive"), two_passes(0.2, 0.8, ascent=asam)),
    "layerwise": Row(Gnp(r=0.05, alpha=0.8, metric="layerwise"), two_passes(0.05, 0.8, ascent=layerwise)),
    "layerwise kernels": Row(
        Gnp(r=0.05, alpha=0.8, metric="layerwise", mask=is_kernel),
        two_passes(0.05, 0.8, ascent=only("kernel", layerwise)),
    ),
    "biases": Row(Gnp(r=0.2, alpha=0.8, mask=is_bias), two_passes(0.2, 0.8, ascent=only("bias", euclidean))),
    "kernels": Row(Gnp(r=0.2, alpha=0.8, mask=is_kernel), two_passes(0.2, 0.8, ascent=only("kernel", euclidean))),
    "adaptive kernels": Row(
        Gnp(r=0.2, alpha=0.8, mask=is_kernel, metric="adaptive"), two_passes(0.2, 0.8, ascent=only("kernel", asam))
    ),
}
PARTS = {
    "groups 2": Row(Gnp(r=0.2, alpha=0.8, perturb_groups=2), two_passes(0.2, 0.8, num_groups=2)),
    "groups 4": Row(Gnp(r=0.2, alpha=0.8, perturb_groups=4), two_passes(0.2, 0.8, num_groups=4)),
    "ascent 1/4": Row(Gnp(r=0.2, alpha=0.8, ascent_fraction=0.25), two_passes(0.2, 0.8, fraction=0.25)),
    "ascent 1/2": Row(Gnp(r=0.2, alpha=0.8, ascent_fraction=0.5), two_passes(0.2, 0.8, fraction=0.5)),
    "groups 2, ascent 1/4": Row(
        Gnp(r=0.2, alpha=0.8, perturb_groups=2, ascent_fraction=0.25),
        two_passes(0.2, 0.8, num_groups=2, fraction=0.25),
    ),
    "groups 4, ascent 1/2": Row(
        Gnp(r=0.2, alpha=0.8, perturb_groups=4, ascent_fraction=0.5),
        two_passes(0.2, 0.8, num_groups=4, fraction=0.5),
    ),
    "accumulated": Row(Gnp(r=0.2, alpha=0.8), two_passes(0.2, 0.8), num_accumulated=4),
    "groups 2, accumulated": Row(
        Gnp(r=0.2, alpha=0.8, perturb_groups=2), two_passes(0.2, 0.8, num_groups=2), num_accumulated=4
    ),
    "groups 8, accumulated": Row(
        Gnp(r=0.2, alpha=0.8, perturb_groups=8), two_passes(0.2, 0.8, num_groups=8), num_accumulated=4
    ),
    "ascent 1/2, accumulated": Row(
        Gnp(r=0.2, alpha=0.8, ascent_fraction=0.5), two_passes(0.2, 0.8, fraction=0.5), num_accumulated=4
    ),
}
# The steps of `bernoulli` are a golden draw: with another, a resumed run would differ from the interrupted one.
GATES = {
    "every": Row(Gnp(r=0.2, alpha=0.8, gate=every(3)), two_passes(0.2, 0.8, on_steps=(0, 3))),
    "window": Row(Gnp(r=0.2, alpha=0.8, gate=window(1, 3)), two_passes(0.2, 0.8, on_steps=(1, 2))),
    "bernoulli": Row(Gnp(r=0.2, alpha=0.8, gate=bernoulli(0.5, seed=0)), two_passes(0.2, 0.8, on_steps=(1, 3, 4))),
}
THRESHOLDS = (0.5, 2.9, 0.5, -1.0, 1.0)
NORM_GATES = {
    "norm": Row(
        Gnp(r=0.2, alpha=0.8, norm_gate=NormGate(lambda step: jnp.asarray(THRESHOLDS)[step])),
        aesam(0.2, 0.8, THRESHOLDS, on_steps=(0, 2, 3)),
    ),
}
SCHEDULES = {
    "warm-up of r": Row(Gnp(r=RISE, alpha=0.8), two_passes(rise, 0.8)),
    "warm-up of alpha": Row(Gnp(r=0.2, alpha=RISE), two_passes(0.2, rise)),
    "warm-up of lam": Row(Gnp(r=0.5, lam=RISE), two_passes(0.5, lambda step: rise(step) / 0.5)),
    "warm-up of r, lam fixed": Row(Gnp(r=RISE, lam=0.1), two_passes(rise, lambda step: 0.1 / rise(step))),
    "proportional to the learning rate": Row(Gnp(r=FALL, alpha=0.8), two_passes(fall, 0.8)),
    "gsam, r proportional to the learning rate": Row(
        Gnp(r=FALL, alpha=0.4, blend="gsam"), two_passes(fall, 0.4, oracles.gsam)
    ),
}
COMBINATIONS = {
    "gsam, adaptive, groups 2, ascent 1/2, accumulated": Row(
        Gnp(r=0.2, alpha=0.4, blend="gsam", metric="adaptive", perturb_groups=2, ascent_fraction=0.5),
        two_passes(0.2, 0.4, oracles.gsam, ascent=asam, num_groups=2, fraction=0.5),
        num_accumulated=4,
    ),
    "unit_norm, biases, groups 2, warm-up of alpha": Row(
        Gnp(r=0.2, alpha=RISE, blend="unit_norm", mask=is_bias, perturb_groups=2),
        two_passes(
            0.2, rise, oracles.unit_norm, ascent=only("bias", euclidean), num_groups=2, on_steps=range(1, NUM_STEPS)
        ),
    ),
    "decoupled, groups 2, ascent 1/2, every": Row(
        Gnp(r=0.2, alpha=1.5, blend="decoupled", perturb_groups=2, ascent_fraction=0.5, gate=every(2)),
        two_passes(0.2, 1.5, wsam, num_groups=2, fraction=0.5, on_steps=(0, 2, 4)),
    ),
    "momentum, adaptive, kernels, accumulated": Row(
        Gnp(r=0.2, alpha=1.0, direction="momentum", metric="adaptive", mask=is_kernel),
        msam(0.2, ascent=only("kernel", asam)),
        num_accumulated=2,
    ),
    "stale, window, accumulated": Row(
        Gnp(r=0.2, alpha=1.0, direction="stale", gate=window(2, 4)), ssam(0.2, on_steps=(2, 3)), num_accumulated=2
    ),
    "friendly, gsam, window": Row(
        Gnp(r=0.2, alpha=0.4, direction="friendly", blend="gsam", gate=window(1, 4)),
        fsam(0.2, 0.4, 0.9, friendly, oracles.gsam, on_steps=(1, 2, 3)),
    ),
    "friendly, groups 4": Row(
        Gnp(r=0.2, alpha=0.8, direction="friendly", perturb_groups=4),
        fsam(0.2, 0.8, 0.9, friendly, num_groups=4),
    ),
    "layerwise, groups 2, accumulated": Row(
        Gnp(r=0.05, alpha=0.8, metric="layerwise", perturb_groups=2),
        two_passes(0.05, 0.8, ascent=layerwise, num_groups=2),
        num_accumulated=4,
    ),
    "rise of the loss, decoupled, groups 2": Row(
        Gnp(r=0.05, alpha=0.8, radius="loss", blend="decoupled", perturb_groups=2),
        two_passes(0.05, 0.8, wsam, ascent=with_rise(np.inf), num_groups=2),
    ),
    "reused, adaptive, window, accumulated": Row(
        Gnp(r=0.2, alpha=0.8, direction="reused", reuse_every=2, metric="adaptive", gate=window(1, 4)),
        looksam(0.2, 0.8, 2, ascent=asam, on_steps=(1, 2, 3)),
        num_accumulated=2,
    ),
}
ROWS = BLENDS | DIRECTIONS | RADII | METRICS_AND_MASKS | PARTS | GATES | NORM_GATES | SCHEDULES | COMBINATIONS
# Gates, schedules and single cuts add no arithmetic of their own: in float32 they stand in the combinations.
ROWS_IN_FLOAT32 = BLENDS | DIRECTIONS | RADII | METRICS_AND_MASKS | COMBINATIONS
CASES = [(name, "float64") for name in ROWS] + [(name, "float32") for name in ROWS_IN_FLOAT32]


# In float32 units in the last place of a leaf's largest entry: 1e-10 in float64. In float32 each of the five steps adds
# the rounding of two passes, 10 units at most as measured. "reused" lengthens g2 - (its part along g1), the difference
# of vectors that are nearly parallel, to ||g1||, and the rounding with it: 70 as measured.
MAX_ULPS = {
    ("float64", "gradient"): 1e-10 * 2**23,
    ("float64", "momentum"): 1e-10 * 2**23,
    ("float64", "reused"): 1e-10 * 2**23,
    ("float64", "stale"): 1e-10 * 2**23,
    ("float64", "friendly"): 1e-10 * 2**23,
    ("float32", "gradient"): 16,
    ("float32", "momentum"): 16,
    ("float32", "reused"): 128,
    ("float32", "stale"): 16,
    ("float32", "friendly"): 16,
}


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_follows_the_oracle_of_its_paper(name, dtype):
    """u of each step, and the final parameters, are those of float64 NumPy."""
    row = ROWS[name]
    with float64(dtype == "float64"):
        path = list(follow(row, dtype))
    errors = [
        ulps(actual, expected)
        for pair in zip(path, oracles.follow(row.oracle, PARAMS, NUM_STEPS, RATE, DECAY), strict=True)
        for actual, expected in zip(*pair, strict=True)
    ]
    assert max(errors) <= MAX_ULPS[dtype, row.gnp.direction]


def follow(row, dtype):
    """(u, new parameters) of each step, as in a training loop."""
    optimizer = optax.sgd(RATE, momentum=DECAY)
    batch = on_device(BATCH_OF_16, dtype)
    penalized_fn = penalize(mlp_loss, row.gnp, num_accumulated=row.num_accumulated)

    @partial(jax.jit, static_argnames="kind")
    def train_step(params, opt_state, kept, step, kind):
        momentum = optax.tree.get(opt_state, "trace")
        result = penalized_fn(params, batch, step=step, kind=kind, state=kept, momentum=momentum)
        update, opt_state = optimizer.update(result.grad, opt_state, params)
        if result.displacement is not None:
            update = jax.tree.map(lambda u, d: u - RATE * d, update, result.displacement)
        return result.grad, optax.apply_updates(params, update), opt_state, result.state

    params = on_device(PARAMS, dtype)
    opt_state = optimizer.init(params)
    kept = row.gnp.init_state(params)
    for step, kind in enumerate(row.gnp.step_kinds(np.arange(NUM_STEPS))):
        u, params, opt_state, kept = train_step(params, opt_state, kept, step, kind=int(kind))
        yield u, params


@pytest.mark.parametrize(
    ("num_groups", "num_accumulated", "num_examples"), [(1, 1, 16), (1, 4, 4), (2, 1, 8), (2, 4, 4), (8, 4, 2)]
)
def test_no_pass_sees_more_examples_than_its_part(num_groups, num_accumulated, num_examples):
    """Accumulation saves the promised memory, in both passes, also with groups."""
    seen = []

    def loss_fn(params, batch):
        seen.append(len(batch["x_BxD"]))
        return mlp_loss(params, batch)

    fn = penalize(loss_fn, Gnp(alpha=0.8, perturb_groups=num_groups), num_accumulated=num_accumulated)
    jax.eval_shape(fn, on_device(PARAMS, "float32"), on_device(BATCH_OF_16, "float32"))
    assert set(seen) == {num_examples}


@pytest.mark.parametrize("setting", [{"num_accumulated": 512}, {"gnp": Gnp(alpha=0.8, perturb_groups=512)}], ids=str)
def test_losses_of_many_parts_are_averaged_in_float32(setting):
    """A sum in the bfloat16 of a loss would stop growing at 256."""

    def loss_fn(params, batch):
        loss = jnp.mean(params * batch).astype(jnp.bfloat16)
        return loss, {"accuracy": loss, "constant": 2.0}

    arguments = {"gnp": Gnp(alpha=0.8)} | setting
    result = penalize(loss_fn, has_aux=True, **arguments)(jnp.ones(()), jnp.ones(512))
    assert (result.loss, result.aux["accuracy"], result.aux["constant"]) == (1, 1, 2)


def test_reusing_what_was_never_kept_says_that_the_penalty_is_off():
    """As after a skipped first full step."""
    fn = penalize(lambda w, batch: jnp.sum(w**2 * batch), Gnp(alpha=0.8, direction="reused"))
    w = jnp.ones(3)
    for kept, is_on in ((jnp.zeros(3), 0), (jnp.ones(3), 1)):
        result = fn(w, w, kind=StepKind.REUSE, state=kept)
        assert result.telemetry["on"] == is_on
        assert bool((result.grad == 2 * w).all()) != bool(is_on)


def test_parts_of_a_replica_are_cut_from_its_own_examples(set_mesh):
    """With the groups on a mesh axis each of its shards accumulates as often as the whole batch."""
    seen = []

    def loss_fn(params, batch):
        seen.append(len(batch["x_BxD"]))
        return mlp_loss(params, batch)

    set_mesh(replica=2)
    batch = jax.device_put(on_device(BATCH_OF_16, "float32"), sharding(P(REPLICA)))
    fn = penalize(loss_fn, Gnp(alpha=0.8, perturb_groups=2), num_accumulated=4, group_axis=REPLICA)
    jax.eval_shape(jax.jit(fn), jax.device_put(on_device(PARAMS, "float32"), sharding(P())), batch)
    assert set(seen) == {2}


def test_examples_that_belong_together_come_into_the_same_part():
    """A loss that normalises pairs of consecutive examples, as batch statistics do, is that of whole pairs."""
    x_BxD = jnp.asarray(BATCH_OF_16["x_BxD"], jnp.float32)

    def loss_fn(w_D, x_BxD):
        score_Px2 = jnp.reshape(x_BxD @ w_D, (-1, 2))
        return jnp.mean(jnp.square(score_Px2[:, 0] - score_Px2[:, 1]))

    def gradient(**options):
        return penalize(loss_fn, Gnp(alpha=0.8), **options)(jnp.ones(x_BxD.shape[1]), x_BxD).grad

    np.testing.assert_allclose(gradient(num_accumulated=4, num_together=2), gradient(), rtol=1e-5)
    assert not np.allclose(gradient(num_accumulated=4), gradient(), rtol=1e-2)
