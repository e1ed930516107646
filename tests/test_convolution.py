"""The gradients of convolutions on CPUs: those of JAX, in the form for which XLA for CPUs has fast code."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.config import MeshConfig
from gnp_scale.mesh import REPLICATED, batch_spec, make_mesh, sharding
from gnp_scale.models.convolution import _convolve, convolve

pytestmark = pytest.mark.usefixtures("unoptimized")

FORM = "b01f_01io->b01f"


def arrays(height, width, size, channels, num_groups=1, num_examples=2):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (num_examples, height, width, channels * num_groups))
    return x, jax.random.normal(keys[1], (size, size, channels, 2 * num_groups))


def gradients(fn, x, kernel):
    weight = jax.random.normal(jax.random.key(1), jax.eval_shape(fn, x, kernel).shape)
    return jax.grad(lambda x, kernel: jnp.sum(weight * fn(x, kernel).astype(jnp.float32)), (0, 1))(x, kernel)


@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "padding", "num_groups"),
    [
        (5, 7, 3, 1, 1, 2),
        (8, 7, 3, 2, 1, 1),
        (9, 8, 4, 4, 0, 1),
        (3, 6, 5, 3, 3, 3),
        (6, 5, 1, 4, 2, 1),
        (7, 6, 2, 3, 0, 2),
    ],
)
def test_gradients_are_those_of_jax(height, width, size, stride, padding, num_groups):
    """Also where windows leave pixels out, or see only zeros."""
    x, kernel = arrays(height, width, size, 3, num_groups)
    ours = jax.jit(partial(gradients, lambda *args: convolve(*args, stride, padding, num_groups)))(x, kernel)
    jaxs = jax.jit(partial(gradients, lambda *args: _convolve(*args, stride, padding, num_groups)))(x, kernel)
    for one, other in zip(ours, jaxs, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("num_groups", [1, 3])
def test_examples_on_axes_of_one_device_have_the_same_gradients(num_groups):
    x, kernel = arrays(6, 5, 3, 2, num_groups)
    plain = gradients(lambda *args: convolve(*args, 1, 1, num_groups), x, kernel)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        x, kernel = jax.device_put((x, kernel), (sharding(batch_spec()), sharding(REPLICATED)))
        found = jax.jit(partial(gradients, lambda *args: convolve(*args, 1, 1, num_groups)))(x, kernel)
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outside_of_a_loop_without_groups_the_bits_are_the_same(dtype, optimized):
    x, kernel = (array.astype(dtype) for array in arrays(7, 8, 3, 4))
    ours = jax.jit(partial(gradients, lambda *args: convolve(*args, 2, 1)))(x, kernel)
    jaxs = jax.jit(partial(gradients, lambda *args: _convolve(*args, 2, 1, 1)))(x, kernel)
    for one, other in zip(ours, jaxs, strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_groups", [1, 4])
def test_in_a_loop_gradients_and_products_with_the_hessian_have_the_fast_form(num_groups):
    """Otherwise a step with microbatches takes 24 times as long on a CPU."""
    x, kernel = arrays(8, 8, 3, 4, num_groups)

    def product(x, kernel):
        def gradient(kernel):
            return jax.grad(lambda kernel: jnp.sum(jnp.tanh(convolve(x, kernel, 2, 1, num_groups)) ** 2))(kernel)

        return jax.jvp(gradient, (kernel,), (kernel,))[1]

    def looped(x_TxBxHxWxC, kernel):
        return jax.lax.scan(lambda total, x: (total + product(x, kernel), None), kernel, x_TxBxHxWxC)[0]

    text = jax.jit(looped).lower(jnp.stack([x, x, x]), kernel).compile().as_text()
    forms = re.findall(r" convolution\(.*dim_labels=(\S+?)[,\s]", text)
    assert len(forms) >= 2
    assert set(forms) == {FORM}
    assert "batch_group_count" not in text


def test_the_input_is_computed_once():
    """In the order of numbers of the kernel's gradient, XLA would compute it slowly again."""
    x, kernel = arrays(8, 8, 3, 4)

    def num_maxima(product):
        def loss(kernel, x):
            return jnp.sum(jnp.sin(product(jax.nn.relu(2 * x - 1), kernel, 1, 1)))

        return jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text().count(" maximum(")

    assert num_maxima(partial(_convolve, num_groups=1)) == 2, "XLA does it by itself now"
    assert num_maxima(convolve) == 1
