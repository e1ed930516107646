"""Accuracy on corrupted images, and with rounded kernels.

B examples, K kinds, V severities.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale import losses
from gnp_scale.data.augment import normalise
from gnp_scale.data.pipeline import Batch, eval_batches
from gnp_scale.mesh import BATCH, P
from gnp_scale.sharpness import corruptions
from gnp_scale.sharpness.corruptions import SEVERITIES
from gnp_scale.sharpness.examples import During
from gnp_scale.sharpness.objective import Params
from gnp_scale.sharpness.rounding import rounded
from gnp_scale.training.compilation import compiler_options
from gnp_scale.training.setup import Task

NUM_BITS = (32, 8, 4)
"""Of a rounded weight; 32 are the weights as they are."""


def of_corruptions(
    task: Task, params: Params, batch_stats: Any, seed: int, during: During
) -> dict[str, tuple[float, ...]]:
    """The accuracy on the evaluated images with each kind of corruption, for the severities 0 to 5.

    Images are read once. The key of an image follows from `seed`, its number in the split and the kind alone.
    """
    data, step, num_images = task.config.data, _make_step(task), 0.0
    right_KxV = np.zeros((len(corruptions.KINDS), len(SEVERITIES)))
    for number, batch in enumerate(eval_batches(task.dataset.test, data)):
        with during():
            num_images += float(jnp.sum(batch["mask"]))
            first = np.int32(number * data.eval_batch_size)
            right_KxV += np.asarray(step(params, batch_stats, batch, first, np.uint32(seed))).reshape(right_KxV.shape)
    return dict(zip(corruptions.KINDS, map(tuple, (right_KxV / num_images).tolist()), strict=True))


def of_rounding(task: Task, params: Params, batch_stats: Any, during: During) -> dict[int, float]:
    """The accuracy on the evaluated images after rounding the kernels, for each number of bits."""
    step, num_right, num_images = _make_clean_step(task), dict.fromkeys(NUM_BITS, 0.0), 0.0
    narrow = {bits: params if bits == 32 else jax.jit(partial(rounded, num_bits=bits))(params) for bits in NUM_BITS}
    for batch in eval_batches(task.dataset.test, task.config.data):
        with during():
            num_images += float(jnp.sum(batch["mask"]))
            found = jax.device_get({bits: step(few, batch_stats, batch) for bits, few in narrow.items()})
            num_right = {bits: right + float(found[bits]) for bits, right in num_right.items()}
    return {num_bits: right / num_images for num_bits, right in num_right.items()}


def _make_step(task: Task) -> Any:
    """How many images of a batch are guessed correctly, for each severity of each kind (float32 K V).

    The kind is chosen inside the program, so that the network is compiled once.
    """
    kind_KV, severity_KV = np.indices((len(corruptions.KINDS), len(SEVERITIES))).reshape(2, -1)
    functions = [partial(corruptions.corrupt, kind) for kind in corruptions.KINDS]

    @partial(jax.jit, compiler_options=compiler_options())
    def step(params: Params, batch_stats: Any, batch: Batch, first: jax.Array, seed: jax.Array) -> jax.Array:
        place_B = jax.sharding.reshard(jnp.arange(len(batch["label"]), dtype=jnp.int32), P(BATCH))

        def of_corruption(kind_and_severity: tuple[jax.Array, jax.Array]) -> jax.Array:
            kind, severity = kind_and_severity
            key_B = keys(seed, first + place_B, kind)
            image = jax.lax.switch(kind, functions, batch["image"], severity, key_B)
            return num_right(task, params, batch_stats, batch | {"image": image})

        return jax.lax.map(of_corruption, (jnp.asarray(kind_KV), jnp.asarray(severity_KV)))

    return step


def keys(seed: jax.typing.ArrayLike, number_B: jax.Array, kind: jax.typing.ArrayLike) -> jax.Array:
    """The keys for the images with these numbers in their split, of the kind with this number in `KINDS`."""
    key = jax.random.fold_in(jax.random.key(seed), kind)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, number_B)


def _make_clean_step(task: Task) -> Any:
    return jax.jit(partial(num_right, task), compiler_options=compiler_options())


def num_right(task: Task, params: Params, batch_stats: Any, batch: Batch) -> jax.Array:
    """How many images of a batch are guessed correctly."""
    logits_BxK = task.model.network(params, batch_stats)(normalise(batch["image"], task.dataset), train=False)
    right_B = losses.top_k_correct(logits_BxK, batch["label"], k=1)
    return jnp.sum(jnp.where(batch["mask"] > 0, right_B, 0.0))
