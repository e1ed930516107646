"""Options of vision transformers against formulas in float64: fixed positions, and the layer before the head."""

import jax
import numpy as np
import pytest

from gnp_scale.config import ModelConfig
from gnp_scale.models import registry

pytestmark = pytest.mark.usefixtures("unoptimized")

SHAPE, WIDTH = (8, 12, 3), 16
EPS = np.finfo(np.float32).eps


def create(**options):
    """A small network, with parameters moved from their initial values: heads are zero at first."""
    config = ModelConfig("vit_ti", patch_size=4, depth=1, width=WIDTH, num_heads=2, **options)
    model = registry.create(config, SHAPE, 5, 3)
    params, _ = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda w: w + rng.normal(size=w.shape, scale=0.3).astype(np.float32), params)


def image() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)


def published_position(row: int, column: int, channel: int) -> float:
    """`posemb_sincos_2d` of big_vision: sin and cos of the column, then of the row; frequencies 10,000^(-i / (n-1))."""
    part, number = divmod(channel, WIDTH // 4)
    angle = (column, column, row, row)[part] / 10_000 ** (number / (WIDTH // 4 - 1))
    return (np.sin, np.cos, np.sin, np.cos)[part](angle)


@pytest.mark.parametrize("pool", ["average", "token"])
def test_sincos_positions_are_the_published_ones_and_only_of_patches(pool):
    """What they add to the tokens of a network that adds none; a class token and registers come first."""
    model, params = create(position="sincos2d", num_registers=2, pool=pool)
    without, _ = create(position="rope", num_registers=2, pool=pool)
    tokens, plain = (np.asarray(m.network(params, {})._embed_patches(image()), np.float64) for m in (model, without))
    expected = [[published_position(n // 3, n % 3, channel) for channel in range(WIDTH)] for n in range(6)]
    expected = np.pad(expected, ((2 + (pool == "token"), 0), (0, 0)))
    # Float32 positions, each added to a token.
    np.testing.assert_allclose(
        tokens - plain, np.tile(expected, (3, 1, 1)), rtol=0, atol=2 * EPS * np.abs(tokens).max()
    )


def test_layer_before_the_head_is_a_dense_layer_with_tanh():
    model, params = create(rep_layer=True)
    without, _ = create()
    pooled = without.features({key: leaf for key, leaf in params.items() if key != "rep"}, {})(image())
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), {key: params[key] for key in ("rep", "head")})
    hidden = np.tanh(np.asarray(pooled, np.float64) @ w["rep"]["kernel"] + w["rep"]["bias"])
    expected = hidden @ w["head"]["kernel"] + w["head"]["bias"]
    got = jax.jit(lambda image: model.network(params, {})(image, train=False))(image())
    # Two layers of 16 float32 products each.
    np.testing.assert_allclose(got, expected, rtol=0, atol=32 * EPS * np.abs(expected).max())
