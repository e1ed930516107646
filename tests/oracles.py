"""Oracles in float64 NumPy, written from the equations: they share no code with `gnp_scale` and use no JAX.

B: examples, D: inputs, H: hidden channels, K: classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

type Leaves = dict[str, np.ndarray]
type LossAndGrad = Callable[[Leaves], tuple[float, Leaves]]


def mlp_params(num_inputs: int = 8, num_hidden: int = 16, num_classes: int = 8, seed: int = 0) -> Leaves:
    """Float64 parameters of `mlp_loss_and_grad`, which have values of float32 so that both types start alike."""
    rng = np.random.default_rng(seed)
    shapes = {
        "hidden_kernel_DxH": (num_inputs, num_hidden),
        "hidden_bias_H": (num_hidden,),
        "head_kernel_HxK": (num_hidden, num_classes),
        "head_bias_K": (num_classes,),
    }
    return {name: rng.normal(0, 0.3, shape).astype(np.float32).astype(np.float64) for name, shape in shapes.items()}


def mlp_batch(num_examples: int = 16, num_inputs: int = 8, num_classes: int = 8, seed: int = 1) -> Leaves:
    """Random inputs, with values of float32, and one-hot labels."""
    rng = np.random.default_rng(seed)
    x_BxD = rng.normal(size=(num_examples, num_inputs)).astype(np.float32).astype(np.float64)
    return {"x_BxD": x_BxD, "label_BxK": np.eye(num_classes)[rng.integers(num_classes, size=num_examples)]}


def mlp_loss_and_grad(params: Leaves, batch: Leaves) -> tuple[float, Leaves]:
    """Mean softmax cross-entropy of a tanh network with one hidden layer, and its gradient, by hand."""
    x_BxD, label_BxK = batch["x_BxD"], batch["label_BxK"]
    hidden_BxH = np.tanh(x_BxD @ params["hidden_kernel_DxH"] + params["hidden_bias_H"])
    logits_BxK = hidden_BxH @ params["head_kernel_HxK"] + params["head_bias_K"]
    log_probs_BxK = logits_BxK - np.log(np.exp(logits_BxK).sum(axis=1, keepdims=True))
    loss = -(label_BxK * log_probs_BxK).sum(axis=1).mean()

    d_logits_BxK = (np.exp(log_probs_BxK) - label_BxK) / len(x_BxD)
    d_hidden_BxH = (d_logits_BxK @ params["head_kernel_HxK"].T) * (1 - hidden_BxH**2)
    return float(loss), {
        "hidden_kernel_DxH": x_BxD.T @ d_hidden_BxH,
        "hidden_bias_H": d_hidden_BxH.sum(axis=0),
        "head_kernel_HxK": hidden_BxH.T @ d_logits_BxK,
        "head_bias_K": d_logits_BxK.sum(axis=0),
    }


class PenalizedOracle(NamedTuple):
    """Everything that one step computes, in the names of the paper."""

    loss: float
    loss_perturbed: float
    g1: Leaves
    eps: Leaves
    g2: Leaves
    u: Leaves


def penalized(
    loss_and_grad: LossAndGrad, params: Leaves, r: float, alpha: float, blend: str = "paper"
) -> PenalizedOracle:
    """Algorithm 1 of arXiv 2202.03599, and with `blend="unit_norm"` what its released code does."""
    loss, g1 = loss_and_grad(params)
    norm = np.sqrt(inner(g1, g1))
    eps = {name: r * g / norm for name, g in g1.items()}
    loss_perturbed, g2 = loss_and_grad({name: w + eps[name] for name, w in params.items()})
    first = norm if blend == "unit_norm" else 1.0
    u = {name: (1 - alpha) * g1[name] / first + alpha * g2[name] for name in g1}
    return PenalizedOracle(loss, loss_perturbed, g1, eps, g2, u)


def inner(a: Leaves, b: Leaves) -> float:
    """<a, b> over all leaves."""
    return float(sum((a[name] * b[name]).sum() for name in a))
