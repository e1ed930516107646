"""Epochs as users of Flax Linen write them: optax, `jax.jit`, batches of NumPy. Command: epoch_flax FOLDER KIND.

KIND is "plain", "by hand" (the second gradient at w + r g / ||g||) or "optax.contrib.sam".
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import normalize, sam

from benchmarks.peers import linen
from benchmarks.peers.epoch_ours import model
from benchmarks.peers.epoch_setting import NUM_WARM_UP_STEPS, Setting, serve


class Loop:
    """Variables, optimizer and data."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.setting = setting = Setting.read(folder)
        self.image, self.label = np.load(folder / "image.npy"), np.load(folder / "label.npy")
        self.rng, self.network = np.random.default_rng(0), linen.create(model(setting), setting.num_classes)
        self.variables = dict(
            self.network.init(jax.random.key(0), jnp.asarray(self.image[:1], jnp.float32), train=False)
        )
        num_parameters = sum(w.size for w in jax.tree.leaves(self.variables["params"]))
        assert num_parameters == setting.num_parameters, num_parameters
        self.optimizer, self.kind = make_optimizer(setting, kind), kind
        self.opt_state = self.optimizer.init(self.variables["params"])
        self.train_step = jax.jit(self.step, donate_argnums=(0, 1))

    def step(self, variables: Any, opt_state: Any, image: jax.Array, label: jax.Array) -> Any:
        """An update, with its loss and accuracy."""
        params, setting = variables["params"], self.setting
        x = (image / 255.0 - jnp.asarray(setting.mean)) / jnp.asarray(setting.std)

        @partial(jax.value_and_grad, has_aux=True)
        def loss_and_grad(params: Any) -> Any:
            logits, new = self.network.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
            return loss, (new, jnp.mean(jnp.argmax(logits, -1) == label))

        (loss, (new, accuracy)), grad = loss_and_grad(params)
        if self.kind == "by hand":
            scale = setting.radius / optax.tree.norm(grad)
            _, grad = loss_and_grad(jax.tree.map(lambda w, g: w + scale * g, params, grad))
        extra = {"grad_fn": lambda params, _: loss_and_grad(params)[1]} if self.kind == "optax.contrib.sam" else {}
        change, opt_state = self.optimizer.update(grad, opt_state, params, **extra)
        return {**new, "params": optax.apply_updates(params, change)}, opt_state, loss, accuracy

    def run(self, num_steps: int) -> float:
        """Trains on so many batches of a new order; returns the last loss."""
        order, size, metrics = self.rng.permutation(len(self.label)), self.setting.batch_size, []
        for number in range(num_steps):
            rows = order[number * size : (number + 1) * size]
            batch = self.image[rows], self.label[rows]
            self.variables, self.opt_state, *new = self.train_step(self.variables, self.opt_state, *batch)
            metrics.append(new)
        return jax.device_get(metrics)[-1][0].item()


def make_optimizer(setting: Setting, kind: str) -> Any:
    """The optimizer of the setting, inside of optax's SAM if that is asked for."""
    optimizer: Any = optax.sgd(setting.learning_rate, setting.momentum, nesterov=True)
    if setting.model == "vit":
        optimizer = optax.adamw(setting.learning_rate, weight_decay=setting.weight_decay)
    if kind != "optax.contrib.sam":
        return optimizer
    adversary = optax.chain(normalize(), optax.sgd(setting.radius))
    return sam(optimizer, adversary, sync_period=2, opaque_mode=True)


if __name__ == "__main__":
    loop = Loop(Path(sys.argv[1]), sys.argv[2])
    serve(lambda: loop.run(NUM_WARM_UP_STEPS), lambda: loop.run(loop.setting.num_steps))
