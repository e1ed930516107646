"""Compiles the kernels of a step for 8 H100, without the hardware: `python triton_on_h100.py FOLDER CASE`."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from gnp_kernels import AdamW, Sgd, Updated, blend_update, dots, perturb, squared_norm

from benchmarks.hardware import h100_mesh
from gnp_scale.config import ModelConfig
from gnp_scale.models import registry

CASES = {
    "ViT-B f32": ("vit_b", jnp.float32, AdamW(weight_decay=0.1), None),
    "ViT-B bf16": ("vit_b", jnp.bfloat16, AdamW(weight_decay=0.1), jnp.bfloat16),
    "ResNet-50 bf16": ("resnet50", jnp.bfloat16, Sgd(0.9, weight_decay=0.1), jnp.bfloat16),
}
"""Network, type of the gradients, optimizer, and type of the copy to compute with."""


def penalised(rule: Sgd | AdamW, copy: Any) -> Callable[..., Updated]:
    """The arithmetic between the passes of a penalised step, on local shards, with placeholders for the passes."""

    def step(w: Any, moments: Any, g1: Any, g2: Any) -> Updated:
        norm = jnp.sqrt(jax.lax.psum(squared_norm(g1, implementation="triton"), "fsdp"))
        moved = perturb(w, g1, 0.05 / norm, dtype=copy, implementation="triton")
        with jax.named_scope("model"):
            g2 = jax.tree.map(lambda x, g: g - x.astype(g.dtype), moved, g2)
        products = jax.lax.psum(jnp.stack(dots(g1, g2, implementation="triton")), "fsdp")
        clip = 1 / jnp.sqrt(jnp.sum(products))
        return blend_update(
            w, g1, g2, moments,
            rule=rule, c1=0.2 * clip, c2=0.8 * clip, learning_rate=0.1, count=1, copy_dtype=copy,
            implementation="triton",
        )  # fmt: skip

    return step


def compiled_text(model: str, grad: Any, rule: Sgd | AdamW, copy: Any) -> tuple[str, int]:
    """The program of one device, and how many parameters it has."""
    with jax.set_mesh(h100_mesh()):
        network = registry.create(ModelConfig(model), (224, 224, 3), 1000, 64)
        w = jax.eval_shape(lambda: network.init(jax.random.key(0))[0])
        g = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, grad, sharding=x.sharding), w)
        arguments = w, (w,) * rule.num_moments, g, g
        specs = jax.tree.map(lambda x: x.sharding.spec, arguments)
        results = Updated(specs[0], specs[1], None if copy is None else specs[0], jax.P(), jax.P())
        step = jax.shard_map(penalised(rule, copy), in_specs=specs, out_specs=results, check_vma=False)
        traced = jax.jit(step, donate_argnums=(0, 1)).trace(*arguments)
        text = traced.lower(lowering_platforms=("cuda",)).compile().as_text()
    return text, sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(w))


def main(folder: Path, name: str) -> None:
    text, num_parameters = compiled_text(*CASES[name])
    (folder / name).write_text(text)
    (folder / f"{name} parameters").write_text(str(num_parameters))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
