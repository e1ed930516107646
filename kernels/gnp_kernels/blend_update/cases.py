"""Test arguments for every implementation of `blend_update`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gnp_kernels import testing
from gnp_kernels.blend_update.reference import AdamW, Sgd
from gnp_kernels.trees import Tree

RULES = {
    "sgd": Sgd(),
    "momentum": Sgd(momentum=0.9, weight_decay=1e-2),
    "nesterov": Sgd(momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": AdamW(weight_decay=0.3),
}


class Case(NamedTuple):
    """One call `blend_update(params, g1, g2, moments, rule=rule, **options)`."""

    name: str
    params: Tree
    g1: Tree
    g2: Tree
    moments: tuple[Tree, ...]
    options: dict[str, Any]


def cases() -> list[Case]:
    """All cases."""
    found = [_case(shapes, rule, jnp.float32) for shapes in testing.SHAPES for rule in RULES]
    found += [_case("mixed", rule, jnp.bfloat16, copy_dtype=jnp.bfloat16) for rule in RULES]
    found += [_case("mixed", rule, jnp.float32, has_g2=False, c1=1.0) for rule in RULES]
    found += [_case("mixed", "adamw", jnp.float32, count=1000), _case("mixed", "nesterov", jnp.float32, is_masked=True)]
    found += [
        _case("mixed", "adamw", jnp.float32, c1=1.0, c2=0.0),
        _case("mixed", "adamw", jnp.float32, c2=float("nan")),
    ]
    found += [_case("mixed", rule, jnp.float32, c2=float("nan"), applies=False) for rule in RULES]
    g1, g2 = testing.strange_tree(jnp.float32)
    for name, rule in RULES.items():
        w = jax.tree.map(jnp.ones_like, g1)
        options = {"rule": rule, "c1": 0.2, "c2": 0.8, "learning_rate": 0.1}
        found.append(Case(f"strange {name}", w, g1, g2, (w,) * rule.num_moments, options))
    return found


def _case(shapes: str, rule: str, grad: Any, *, has_g2: bool = True, is_masked: bool = False, **options: Any) -> Case:
    w, m, g1, g2 = (
        testing.tree(testing.SHAPES[shapes], t, i) for i, t in enumerate((jnp.float32, jnp.float32, grad, grad))
    )
    moments = (m, jax.tree.map(jnp.square, m))[: RULES[rule].num_moments]
    mask = jax.tree.unflatten(jax.tree.structure(w), [number % 2 == 0 for number in range(len(w))])
    defaults = {"rule": RULES[rule], "c1": 0.2, "c2": 0.8, "learning_rate": 0.1}
    name = (
        f"{shapes} {rule} {jnp.dtype(grad)} {options}" + (" masked" if is_masked else "") + ("" if has_g2 else " plain")
    )
    options = defaults | options | ({"decay_mask": mask} if is_masked else {})
    return Case(name, w, g1, g2 if has_g2 else None, moments, options)
