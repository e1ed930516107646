"""The compared training steps: the project's own, and the peer's in Flax Linen with optax."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from benchmarks.peers import linen
from benchmarks.tasks import KINDS, noise
from gnp_scale.config import Config, GnpConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

type StepName = Literal["peer", "plain", "penalised"]


def make_config(model: ModelConfig, batch_size: int, image_size: int = 224, num_classes: int = 1000) -> Config:
    """The usual training of `model`: a transformer with AdamW and clipping, another network with SGD and momentum."""
    is_vit = model.name.startswith("vit")
    return Config(
        data=noise(batch_size, image_size, num_classes),
        model=model,
        gnp=GnpConfig(),
        optim=OptimConfig(
            "adamw" if is_vit else "sgd", learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0 if is_vit else None
        ),
        train=TrainConfig(num_steps=1000, kernels="xla"),
    )


def trace(task: Task, mesh: jax.sharding.Mesh, name: StepName) -> Any:
    """The step of this name, traced for the first device of `mesh`; `task` was created on `mesh`."""
    if name != "peer":
        with jax.set_mesh(mesh):
            return make_train_step(task).trace(task.abstract_state(), task.abstract_batch(), kind=KINDS[name])
    device = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: peer_state(task, task.init_state())), task.abstract_batch()
    # A peer uses no mesh.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    return peer_step(task).trace(*shapes)


def peer_state(task: Task, state: Any) -> Any:
    """The state of the peer's step (variables and optimizer state), with the numbers of `state`."""
    variables = linen.variables_like(state.params, state.batch_stats)
    return variables, task.optimizer.init(variables["params"])


def peer_step(task: Task, kind: str = "plain") -> Any:
    """`step(state, batch)`: an update of the peer, with its loss and accuracy, as in Flax's ImageNet example.

    "penalised" replaces g1 by (1 - a) g1 + a g2, as users write it by hand.
    """
    network, dataset = linen.create(task.config.model, task.dataset.num_classes), task.dataset
    r, alpha = task.gnp.values()

    def step(state: Any, batch: Any) -> Any:
        variables, opt_state = state
        params = variables["params"]
        image = (batch["image"] / 255.0 - jnp.asarray(dataset.mean)) / jnp.asarray(dataset.std)

        @partial(jax.value_and_grad, has_aux=True)
        def loss_and_grad(params: Any) -> Any:
            logits, new = network.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return jnp.mean(loss), (new, jnp.mean(jnp.argmax(logits, -1) == batch["label"]))

        (loss, (new, accuracy)), grad = loss_and_grad(params)
        if kind == "penalised":
            scale = r / optax.tree.norm(grad)
            perturbed = jax.tree.map(lambda w, g: w + scale * g, params, grad)
            _, second = loss_and_grad(perturbed)
            grad = jax.tree.map(lambda g1, g2: (1 - alpha) * g1 + alpha * g2, grad, second)
        change, opt_state = task.optimizer.update(grad, opt_state, params)
        params = optax.apply_updates(params, change)
        return ({**new, "params": params}, opt_state), {"loss": loss, "accuracy": accuracy}

    return jax.jit(step, donate_argnums=0)
