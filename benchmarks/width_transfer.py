"""Whether a radius that is right for a narrow network is right for a wide one, with each metric.

Command: python -m benchmarks.width_transfer [--num-seeds N]

An MLP of three hidden layers learns a third of scikit-learn's digits, whose labels are partly wrong, with SAM at
several radii. Learning rates are in the maximal update parametrization (arXiv 2011.14522), so they fit all widths: with
SGD, kernels of variance 1 / inputs (0 in the last layer) and biases of 0 learn at rate times outputs / inputs, a bias
having one input. Before training, it tells how far the perturbation of a layer alone moves the outputs of that layer.

Shapes: B examples, D inputs, H hidden channels, K classes.
"""

import argparse
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from benchmarks.timing import write_report
from gnp_scale.gnp import Gnp, value_and_grad
from gnp_scale.gnp.choices import Metric, last_axis_is_output
from gnp_scale.gnp.perturbation import perturb

WIDTHS = (64, 128, 256, 512)
METRICS: tuple[Metric, ...] = ("euclidean", "layerwise")
RADII = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
NUM_STEPS, BATCH_SIZE, RATE, SHARE_OF_WRONG_LABELS = 600, 64, 0.1, 0.4
LAYERS = ("0", "1", "2", "head")

type Params = dict[str, dict[str, jax.Array]]


def main() -> None:
    """Trains all networks and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-seeds", type=int, default=5)
    num_seeds = parser.parse_args().num_seeds
    lines = [
        f"`python -m benchmarks.width_transfer --num-seeds {num_seeds}`; {NUM_STEPS} steps of {BATCH_SIZE} examples."
    ]
    for metric in METRICS:
        lines += ["", f"## {metric}", "", *moves(metric), "", *accuracies(metric, num_seeds)]
    write_report("width-transfer", "The radius over the width of a network", lines)


def moves(metric: Metric) -> list[str]:
    """A table: root mean square of what eps of a layer adds to its outputs, at the start, for r = 0.1."""
    rows = ["| width | " + " | ".join(f"layer {name}" for name in LAYERS) + " |", "|---|" + "---|" * len(LAYERS)]
    images, labels, _, _ = data(0)
    for width in WIDTHS:
        params = init(jax.random.key(0), width, is_head_zero=False)
        g1 = jax.grad(loss)(params, (images, labels))
        moved = perturb(params, g1, 0.1, Gnp(alpha=1.0, metric=metric)).params
        inputs = hidden(params, images)
        added = [outputs(moved[name], x) - outputs(params[name], x) for name, x in zip(LAYERS, inputs, strict=True)]
        rows.append(f"| {width} | " + " | ".join(f"{jnp.sqrt(jnp.mean(x**2)):.4f}" for x in added) + " |")
    return rows


def accuracies(metric: Metric, num_seeds: int) -> list[str]:
    """A table: mean accuracy on the other digits, and its standard error, for each width and radius."""
    rows = ["| width | " + " | ".join(f"r = {r:g}" for r in RADII) + " | best r |", "|---|" + "---|" * (len(RADII) + 1)]
    for width in WIDTHS:
        train_fn = jax.jit(jax.vmap(partial(train, width=width, metric=metric), (0, None)))
        found = [np.asarray(train_fn(jnp.arange(num_seeds), r)) for r in RADII]
        cells = [f"{100 * x.mean():.1f} ± {100 * x.std(ddof=1) / num_seeds**0.5:.1f}" for x in found]
        best = RADII[int(np.argmax([x.mean() for x in found]))]
        rows.append(f"| {width} | " + " | ".join(cells) + f" | {best:g} |")
    return rows


def train(seed: jax.Array, r: jax.Array, *, width: int, metric: Metric) -> jax.Array:
    """Accuracy after training, a scalar; r = 0 is plain training, which costs two passes here."""
    images, labels, test_images, test_labels = data(0)
    noise_key, init_key, order_key = jax.random.split(jax.random.key(seed), 3)
    wrong = jax.random.randint(noise_key, labels.shape, 0, 10)
    is_wrong = jax.random.uniform(jax.random.fold_in(noise_key, 1), labels.shape) < SHARE_OF_WRONG_LABELS
    labels = jnp.where(is_wrong, wrong, labels)
    gradient = value_and_grad(loss, Gnp(r=lambda _: r, alpha=1.0, metric=metric))

    def step(params: Params, number: jax.Array) -> tuple[Params, None]:
        chosen = jax.random.choice(jax.random.fold_in(order_key, number), len(images), (BATCH_SIZE,), replace=False)
        _, u = gradient(params, (images[chosen], labels[chosen]), step=number)
        return jax.tree.map(lambda w, g: w - RATE * factor(w) * g, params, u), None

    params, _ = jax.lax.scan(step, init(init_key, width, is_head_zero=True), jnp.arange(NUM_STEPS))
    logits_BxK = outputs(params["head"], hidden(params, test_images)[-1])
    return jnp.mean(jnp.argmax(logits_BxK, axis=1) == test_labels)


def factor(w: jax.Array) -> float:
    """Outputs / inputs of a parameter."""
    axes = last_axis_is_output("", w.shape)
    return w.shape[axes.outputs[0]] / math.prod(w.shape[axis] for axis in axes.inputs)


def data(seed: int) -> tuple[jax.Array, ...]:
    """Images and labels for training, and for the accuracy."""
    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(classes))
    images, labels = jnp.asarray(pixels[order] / 8 - 1, jnp.float32), jnp.asarray(classes[order])
    return images[:600], labels[:600], images[600:], labels[600:]


def init(key: jax.Array, width: int, *, is_head_zero: bool) -> Params:
    """Kernels of variance 1 / inputs, and biases of 0."""
    sizes = (64, width, width, width, 10)
    params = {}
    for name, num_in, num_out, own in zip(LAYERS, sizes[:-1], sizes[1:], jax.random.split(key, 4), strict=True):
        scale = 0.0 if name == "head" and is_head_zero else num_in**-0.5
        params[name] = {"kernel": scale * jax.random.normal(own, (num_in, num_out)), "bias": jnp.zeros(num_out)}
    return params


def outputs(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """The affine map of a layer."""
    return x @ layer["kernel"] + layer["bias"]


def hidden(params: Params, x_BxD: jax.Array) -> list[jax.Array]:
    """The inputs of each layer."""
    inputs = [x_BxD]
    for name in LAYERS[:-1]:
        inputs.append(jax.nn.relu(outputs(params[name], inputs[-1])))
    return inputs


def loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean cross-entropy."""
    images, labels = batch
    log_probs = jax.nn.log_softmax(outputs(params["head"], hidden(params, images)[-1]))
    return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=1))


if __name__ == "__main__":
    main()
