"""The method with the interface of `jax.value_and_grad`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from gnp_scale.gnp.blend import Tree
from gnp_scale.gnp.gradient import penalize
from gnp_scale.gnp.microbatch import upcast_tree
from gnp_scale.gnp.settings import Gnp, StepKind


def value_and_grad(
    loss_fn: Callable[..., Any], gnp: Gnp, has_aux: bool = False, argnums: int | Sequence[int] = 0
) -> Callable[..., Any]:
    """A drop-in for `jax.value_and_grad` that differentiates the penalised loss.

    Args:
        loss_fn: `loss_fn(params, batch, ...)`, a mean over the examples of `batch`, a pytree of arrays with the
            examples first. With `has_aux`, it returns (loss, aux).
        gnp: the penalty. If it needs more than a call of `jax.value_and_grad` gives, use `penalize`.
        has_aux: whether `loss_fn` also returns an auxiliary output.
        argnums: which positional arguments are the parameters, as in JAX. Several arguments form one tree, with one
            norm and one perturbation over all; a mask sees the paths "0/...", "1/...", in the order of `argnums`.

    Returns:
        `fn(*args, step=None, **kwargs)`, which takes the arguments of `loss_fn` and returns (loss, u), or
        ((loss, aux), u). loss and aux are those of the clean pass. u is a tree like the parameters, with their types
        and shardings, or a tuple of such trees if `argnums` is a sequence. `step` is for schedules and gates;
        `loss_fn` does not get it.

        With `perturb_groups`, loss and aux are means over the groups, at least in float32. With these or
        `ascent_fraction`, and a gate, aux must not have an entry for each example.

        The batch is the first positional argument that is not differentiated. Groups and `ascent_fraction` split it.
        All other arguments go into every pass unchanged. Without groups no batch is needed.

    Raises:
        ValueError: the blend or direction needs `penalize`; or, in a call, the arguments are not those of `argnums`,
            there is no batch to split, or perturbed parameters are narrower than float32.

    Example:
        >>> import jax.numpy as jnp
        >>> loss_fn = lambda w, batch: jnp.mean((batch @ w) ** 2) / 2
        >>> loss, u = value_and_grad(loss_fn, Gnp(r=0.05, alpha=0.8))(jnp.ones(2), jnp.eye(2))
        >>> print(loss, u)
        0.5 [0.51414216 0.51414216]

    Reference: equations 4 to 6 and algorithm 1 of arXiv 2202.03599.
    """
    if gnp.direction != "gradient" or gnp.blend == "decoupled" or gnp.norm_gate is not None:
        raise ValueError(
            "value_and_grad returns what jax.value_and_grad does: a loss and one gradient. "
            f"Got direction={gnp.direction!r}, blend={gnp.blend!r}, norm_gate={gnp.norm_gate}, which need or return "
            "more. Call penalize instead."
        )

    def fn(*args: Any, step: Any = None, **kwargs: Any) -> Any:
        places = _places(argnums, len(args))
        others = [place for place in range(len(args)) if place not in places]
        if not others and (gnp.perturb_groups, gnp.ascent_fraction) != (1, 1):
            raise ValueError(
                "perturb_groups and ascent_fraction split the batch, the first positional argument that is not "
                f"differentiated. Got argnums={argnums} and {len(args)} positional arguments. "
                "Pass the batch by position."
            )

        def loss_of(params: Tree, *rest: Any) -> Any:
            values = dict(zip((*places, *others), (*params, *rest), strict=False))
            return loss_fn(*(values[place] for place in range(len(args))), **kwargs)

        one = not isinstance(argnums, Sequence)
        penalized_fn = penalize(lambda params, *rest: loss_of((params,) if one else params, *rest), gnp, has_aux)
        params = args[places[0]] if one else tuple(args[place] for place in places)
        batch_and_rest = [args[place] for place in others] or [None]

        def run(kind: StepKind) -> Any:
            result = penalized_fn(params, *batch_and_rest, step=step, kind=kind)
            outputs = result.loss, result.aux
            if gnp.perturb_groups > 1:
                outputs = upcast_tree(outputs)
            return (outputs if has_aux else outputs[0]), result.grad

        # A full step where a schedule is at 0 would give the gradient of that fraction of the batch.
        is_always_on = gnp.gate is None and (gnp.ascent_fraction == 1 or gnp.is_constant)
        if is_always_on:
            return run(StepKind.FULL)
        return jax.lax.cond(gnp.is_on(step), lambda: run(StepKind.FULL), lambda: run(StepKind.PLAIN))

    return fn


def _places(argnums: int | Sequence[int], num_args: int) -> tuple[int, ...]:
    """The positions of the differentiated arguments, counted from the first."""
    numbers = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    places = tuple(number + num_args if number < 0 else number for number in numbers)
    if not places or len(set(places)) < len(places) or not all(0 <= place < num_args for place in places):
        raise ValueError(
            "argnums names positional arguments of the loss, each once. "
            f"Got argnums={argnums} and {num_args} positional arguments. Pass the differentiated ones by position."
        )
    return places
