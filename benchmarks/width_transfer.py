"""Whether a radius and a learning rate that are right for a narrow network are right for a wide one, with each metric.

Command: python -m benchmarks.width_transfer [--num-seeds N]

An MLP of three hidden layers learns a third of scikit-learn's digits, whose labels are partly wrong, with SAM at
several radii and learning rates. These are in the maximal update parametrization (arXiv 2011.14522), so they should fit
all widths: with SGD, kernels of variance 1 / inputs (0 in the last layer) and biases of 0 learn at rate times outputs /
inputs, a bias having one input. Before training, it tells how far the perturbation of a layer alone moves the outputs
of that layer.

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
RADII = (0.0, 0.01, 0.02, 0.04, 0.08)
RATES = (0.05, 0.1, 0.2, 0.4)
NUM_STEPS, BATCH_SIZE, SHARE_OF_WRONG_LABELS = 600, 64, 0.4
LAYERS = ("0", "1", "2", "head")

type Params = dict[str, dict[str, jax.Array]]
type Setting = tuple[float, float]
"""A learning rate and a radius."""


def main() -> None:
    """Trains all networks and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-seeds", type=int, default=5)
    num_seeds = parser.parse_args().num_seeds
    lines = [
        f"`python -m benchmarks.width_transfer --num-seeds {num_seeds}`; {NUM_STEPS} steps of {BATCH_SIZE} examples."
    ]
    for metric in METRICS:
        found = {width: accuracies(metric, width, num_seeds) for width in WIDTHS}
        lines += ["", f"## {metric}", "", *moves(metric), "", *table(found), "", *transfer(found)]
    write_report("width-transfer", "Radius and learning rate over the width of a network", lines)


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


def accuracies(metric: Metric, width: int, num_seeds: int) -> dict[Setting, np.ndarray]:
    """Accuracies on the other digits, one for each seed."""
    train_fn = jax.jit(jax.vmap(partial(train, width=width, metric=metric), (0, None, None)))
    return {(rate, r): np.asarray(train_fn(jnp.arange(num_seeds), rate, r)) for rate in RATES for r in RADII}


def table(found: dict[int, dict[Setting, np.ndarray]]) -> list[str]:
    """A table: mean accuracy and its standard error, for each width, learning rate and radius."""
    rows = ["| width | rate | " + " | ".join(f"r = {r:g}" for r in RADII) + " |", "|---" * (len(RADII) + 2) + "|"]
    for width, accuracy in found.items():
        for rate in RATES:
            cells = [mean_and_error(accuracy[rate, r]) for r in RADII]
            rows.append(f"| {width} | {rate:g} | " + " | ".join(cells) + " |")
    return rows


def transfer(found: dict[int, dict[Setting, np.ndarray]]) -> list[str]:
    """A table: what the best setting of the narrowest network reaches in wider ones, beside their own best setting."""
    best = {width: max(accuracy, key=lambda setting: accuracy[setting].mean()) for width, accuracy in found.items()}
    narrow = best[WIDTHS[0]]
    rows = [
        f"| width | best rate, r | accuracy there | with {narrow[0]:g}, {narrow[1]:g}, best of {WIDTHS[0]} | loss |",
        "|---|---|---|---|---|",
    ]
    for width, accuracy in found.items():
        own, its = accuracy[best[width]], accuracy[narrow]
        words = [f"{best[width][0]:g}, {best[width][1]:g}", *map(mean_and_error, (own, its, own - its))]
        rows.append(f"| {width} | " + " | ".join(words) + " |")
    return rows


def mean_and_error(values: np.ndarray) -> str:
    """In percent, with the standard error."""
    return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1) / len(values) ** 0.5:.1f}"


def train(seed: jax.Array, rate: jax.Array, r: jax.Array, *, width: int, metric: Metric) -> jax.Array:
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
        return jax.tree.map(lambda w, g: w - rate * factor(w) * g, params, u), None

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
