"""Compiles steps of a transformer for H100, which need not be there; counts calls of cuDNN and transposed arrays."""

import json

import jax

from benchmarks.hardware import compiled_step, h100_devices, h100_mesh, lowered_step
from gnp_scale.config import Config, DataConfig, GnpConfig, MeshConfig, ModelConfig
from gnp_scale.mesh import make_mesh
from gnp_scale.training.setup import Task

VIT = "ViT-B/16", "xla"


def num_calls(text: str) -> int:
    return text.count("__cudnn$fmha")


def flops(attention: str) -> int:
    config = Config(
        data=DataConfig(name="synthetic", batch_size=64, eval_batch_size=64, synthetic_num_examples=64),
        model=ModelConfig("vit_ti", patch_size=4, depth=1, dtype="bfloat16", attention=attention),
        gnp=GnpConfig(),
    )
    return Task.of(config).flops_per_pass


if __name__ == "__main__":
    mesh = h100_mesh()
    found = {dtype: num_calls(lowered_step(mesh, *VIT, dtype, depth=1).as_text()) for dtype in ("bfloat16", "float32")}
    text = compiled_step(make_mesh(MeshConfig(), h100_devices(1)), *VIT, "bfloat16", depth=1)
    found["compiled"] = num_calls(text)
    # Activations of 64 examples, 196 tokens and a width of 768 that have the examples contiguous.
    found["transposed"] = text.count("[196,768,64]")
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 1), mesh.devices.flat[:4])):
        found |= {f"flops of {name}": flops(name) for name in ("cudnn", "xla")}
    print(json.dumps(found))
