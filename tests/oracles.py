"""Oracles in float64 NumPy, written from the equations: they share no code with `gnp_scale` and use no JAX.

B: examples, D: inputs, H: hidden channels, K: classes.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

type Leaves = dict[str, np.ndarray]
type LossAndGrad = Callable[[Leaves], tuple[float, Leaves]]


def mlp_params(num_inputs: int = 8, num_hidden: int = 16, num_classes: int = 8, seed: int = 0) -> Leaves:
    """Float64 parameters of `mlp_loss_and_grad` with float32 values, so that both types start equal."""
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


# The variants of the method, each from its paper, over steps of SGD with momentum.


class Update(NamedTuple):
    """The results of one step of a method."""

    u: Leaves
    """For the base optimizer."""
    displacement: Leaves | None = None
    """The parameters also move by -(learning rate) times it."""
    kept: Leaves | None = None
    """For the next step."""


type Rule = Callable[[int, Leaves, Leaves, Leaves | None], Update]
"""A function of the step, the parameters, the momentum, and the direction kept by the last step."""
type Setting = float | Callable[[int], float]


def follow(rule: Rule, params: Leaves, num_steps: int, rate: float, decay: float) -> list[tuple[Leaves, Leaves]]:
    """(u, new parameters) of each step of SGD with heavy-ball momentum."""
    momentum, kept, path = combine((0.0, params)), None, []
    for step in range(num_steps):
        update = rule(step, params, momentum, kept)
        momentum, kept = combine((decay, momentum), (1.0, update.u)), update.kept
        params = combine((1.0, params), (-rate, momentum), (-rate, update.displacement or combine((0.0, params))))
        path.append((update.u, params))
    return path


def combine(*terms: tuple[float, Leaves]) -> Leaves:
    """The sum of factor times leaves."""
    return {name: sum(factor * leaves[name] for factor, leaves in terms) for name in terms[0][1]}


def norm(a: Leaves) -> float:
    """||a|| over all leaves."""
    return float(np.sqrt(inner(a, a)))


def euclidean(_: Leaves, g: Leaves, r: float) -> Leaves:
    """Equation 2 of arXiv 2010.01412."""
    return combine((r / norm(g), g))


def asam(w: Leaves, g: Leaves, r: float) -> Leaves:
    """Equation 6 of arXiv 2102.11600, with T_w = diag(|w|) as for its element-wise operator."""
    length = norm({name: np.abs(w[name]) * g[name] for name in g})
    return {name: r * w[name] ** 2 * g[name] / length for name in g}


def only(part: str, ascent: Callable[[Leaves, Leaves, float], Leaves]) -> Callable[[Leaves, Leaves, float], Leaves]:
    """`ascent` as if only the leaves with `part` in their name were parameters (arXiv 2306.04226, section 3)."""

    def eps(w: Leaves, g: Leaves, r: float) -> Leaves:
        chosen = {name: leaf for name, leaf in g.items() if part in name}
        return combine((0.0, w)) | ascent({name: w[name] for name in chosen}, chosen, r)

    return eps


def paper(g1: Leaves, g2: Leaves, alpha: float) -> Update:
    """Equation 6 of arXiv 2202.03599."""
    return Update(combine((1 - alpha, g1), (alpha, g2)))


def unit_norm(g1: Leaves, g2: Leaves, alpha: float) -> Update:
    """The blend of the code released with arXiv 2202.03599."""
    return Update(combine(((1 - alpha) / norm(g1), g1), (alpha, g2)))


def gsam(g1: Leaves, g2: Leaves, alpha: float) -> Update:
    """Algorithm 1 of arXiv 2203.08065: against the part of g1 that is orthogonal to g2."""
    unit2 = combine((1 / norm(g2), g2))
    orthogonal = combine((1.0, g1), (-inner(g1, unit2), unit2))
    return Update(combine((1.0, g2), (-alpha, orthogonal)))


def wsam(g1: Leaves, g2: Leaves, alpha: float) -> Update:
    """Algorithm 1 of arXiv 2305.15817, where alpha is gamma / (1 - gamma)."""
    return Update(g1, displacement=combine((alpha, g2), (-alpha, g1)))


def two_passes(
    batch: Leaves,
    r: Setting,
    alpha: Setting,
    blend: Callable[[Leaves, Leaves, float], Update] = paper,
    *,
    ascent: Callable[[Leaves, Leaves, float], Leaves] = euclidean,
    num_groups: int = 1,
    fraction: float = 1.0,
    on_steps: Collection[int] | None = None,
) -> Rule:
    """Any blend of the gradients of two passes; the plain gradient on steps outside of `on_steps` or with r = 0."""
    group_size = len(batch["x_BxD"]) // num_groups
    groups = [_examples(batch, i * group_size, group_size) for i in range(num_groups)]

    def rule(step: int, params: Leaves, _: Leaves, __: Leaves | None) -> Update:
        if (on_steps is not None and step not in on_steps) or _at(r, step) == 0:
            return Update(mlp_loss_and_grad(params, batch)[1])
        updates = [of_group(group, step, params) for group in groups]
        u, displacement, _ = zip(*updates, strict=True)
        return Update(_mean(u), None if displacement[0] is None else _mean(displacement))

    def of_group(group: Leaves, step: int, params: Leaves) -> Update:
        _, g1 = mlp_loss_and_grad(params, _examples(group, 0, round(fraction * group_size)))
        eps = ascent(params, g1, _at(r, step))
        _, g2 = mlp_loss_and_grad(combine((1.0, params), (1.0, eps)), group)
        return blend(g1, g2, _at(alpha, step))

    return rule


def looksam(
    batch: Leaves,
    r: float,
    alpha: float,
    k: int,
    ascent: Callable[[Leaves, Leaves, float], Leaves] = euclidean,
    on_steps: Collection[int] | None = None,
) -> Rule:
    """Algorithm 1 of arXiv 2203.02714 over `on_steps`; full steps blend with alpha, as the steps between do."""

    def rule(step: int, params: Leaves, _: Leaves, kept: Leaves | None) -> Update:
        _, g1 = mlp_loss_and_grad(params, batch)
        if on_steps is not None and step not in on_steps:
            return Update(g1, kept=kept)
        number = step if on_steps is None else sorted(on_steps).index(step)
        if number % k:
            return Update(combine((1.0, g1), (alpha * norm(g1) / norm(kept), kept)), kept=kept)
        _, g2 = mlp_loss_and_grad(combine((1.0, params), (1.0, ascent(params, g1, r))), batch)
        cosine = inner(g1, g2) / (norm(g1) * norm(g2))
        vertical = combine((1.0, g2), (-norm(g2) * cosine / norm(g1), g1))
        return paper(g1, g2, alpha)._replace(kept=vertical)

    return rule


def msam(batch: Leaves, r: float, ascent: Callable[[Leaves, Leaves, float], Leaves] = euclidean) -> Rule:
    """Algorithm 1 of arXiv 2401.12033: the only gradient is taken at w - r v / ||v||, with v = 0 at first."""

    def rule(_: int, params: Leaves, momentum: Leaves, __: Leaves | None) -> Update:
        moved = params if norm(momentum) == 0 else combine((1.0, params), (-1.0, ascent(params, momentum, r)))
        return Update(mlp_loss_and_grad(moved, batch)[1])

    return rule


def ssam(batch: Leaves, r: float, on_steps: Collection[int] | None = None) -> Rule:
    """The one gradient of S2-SAM (NeurIPS 2024): at w + r g / ||g|| with the gradient g of the step before."""

    def rule(step: int, params: Leaves, _: Leaves, kept: Leaves | None) -> Update:
        is_moved = kept is not None and (on_steps is None or step in on_steps)
        moved = combine((1.0, params), (1.0, euclidean(params, kept, r))) if is_moved else params
        _, g2 = mlp_loss_and_grad(moved, batch)
        return Update(g2, kept=g2)

    return rule


def fsam(
    batch: Leaves,
    r: float,
    alpha: float,
    decay: float,
    direction: Callable[[Leaves, Leaves], Leaves],
    blend: Callable[[Leaves, Leaves, float], Update] = paper,
    *,
    num_groups: int = 1,
    on_steps: Collection[int] | None = None,
) -> Rule:
    """Perturbs along `direction(g1, m)`, with the moving average m of g1, which begins at 0."""
    group_size = len(batch["x_BxD"]) // num_groups
    groups = [_examples(batch, i * group_size, group_size) for i in range(num_groups)]

    def rule(step: int, params: Leaves, _: Leaves, kept: Leaves | None) -> Update:
        if on_steps is not None and step not in on_steps:
            return Update(mlp_loss_and_grad(params, batch)[1], kept=kept)
        updates = [of_group(group, params, kept) for group in groups]
        return Update(_mean([update.u for update in updates]), kept=_mean([update.kept for update in updates]))

    def of_group(group: Leaves, params: Leaves, kept: Leaves | None) -> Update:
        _, g1 = mlp_loss_and_grad(params, group)
        average = combine((decay, kept or combine((0.0, g1))), (1 - decay, g1))
        eps = euclidean(params, direction(g1, average), r)
        _, g2 = mlp_loss_and_grad(combine((1.0, params), (1.0, eps)), group)
        return blend(g1, g2, alpha)._replace(kept=average)

    return rule


def friendly(g1: Leaves, average: Leaves) -> Leaves:
    """Algorithm 1 of arXiv 2403.12350 with sigma = 1."""
    return combine((1.0, g1), (-1.0, average))


def vasso(_: Leaves, average: Leaves) -> Leaves:
    """Equation 6 of arXiv 2309.15639, with theta = 1 - decay."""
    return average


def aesam(batch: Leaves, r: float, alpha: float, thresholds: Sequence[float], on_steps: Collection[int]) -> Rule:
    """SAM where the squared norm of the gradient is large (arXiv 2304.14647), which must be at `on_steps`."""
    averages, decay = [0.0, 0.0], 0.9

    def rule(step: int, params: Leaves, _: Leaves, __: Leaves | None) -> Update:
        _, g1 = mlp_loss_and_grad(params, batch)
        squared = inner(g1, g1)
        averages[0] = decay * averages[0] + (1 - decay) * squared
        averages[1] = decay * averages[1] + (1 - decay) * (squared - averages[0]) ** 2
        is_large = squared >= averages[0] + thresholds[step] * np.sqrt(averages[1])
        assert is_large == (step in on_steps), "the row must have steps of both kinds"
        if not is_large:
            return Update(g1)
        _, g2 = mlp_loss_and_grad(combine((1.0, params), (1.0, euclidean(params, g1, r))), batch)
        return paper(g1, g2, alpha)

    return rule


def with_rise(largest: float) -> Callable[[Leaves, Leaves, float], Leaves]:
    """The radius of arXiv 2605.10183: the loss rises by `rise` to first order, up to a largest radius."""
    return lambda w, g, rise: euclidean(w, g, min(rise / norm(g), largest))


def unnormalised(_: Leaves, g: Leaves, r: float) -> Leaves:
    """eps = r g (arXiv 2009.11162, equation 5)."""
    return combine((r, g))


def layerwise(_: Leaves, g: Leaves, r: float) -> Leaves:
    """Each layer by r sqrt(outputs / inputs), in its own norm; a bias has one input."""

    def of_layer(leaf: np.ndarray) -> np.ndarray:
        num_outputs, num_inputs = leaf.shape[-1], leaf.shape[0] if leaf.ndim == 2 else 1
        return r * np.sqrt(num_outputs / num_inputs) * leaf / np.sqrt((leaf**2).sum())

    return {name: of_layer(leaf) for name, leaf in g.items()}


def _examples(batch: Leaves, start: int, number: int) -> Leaves:
    return {name: leaf[start : start + number] for name, leaf in batch.items()}


def _mean(trees: Sequence[Leaves]) -> Leaves:
    return combine(*((1 / len(trees), tree) for tree in trees))


def _at(setting: Setting, step: int) -> float:
    return setting(step) if callable(setting) else setting
