"""Measurements of the current machine."""

import jax
from gnp_kernels.bench import bench
from gnp_kernels.dispatch import choose

from gnp_scale.config import ConfigError, ModelConfig
from gnp_scale.models import registry

IMAGENET_SHAPE, NUM_IMAGENET_CLASSES = (224, 224, 3), 1000


def bench_kernels(model: str, num_rounds: int, *, tune: bool) -> None:
    """Prints a report on all operations over the parameters of `model`, on one device.

    Raises: ConfigError: there is no such network, or a kernel gives wrong numbers.
    """
    network = registry.create(ModelConfig(model), IMAGENET_SHAPE, NUM_IMAGENET_CLASSES, batch_size=1)
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0))
    implementation = choose("perturb", "auto", shapes)
    try:
        for line in bench(shapes, implementation, num_rounds, tune=tune):
            print(line, flush=True)
    except AssertionError as error:
        raise ConfigError(f"the kernels are wrong on this device: {error}; train with --kernels xla") from error
