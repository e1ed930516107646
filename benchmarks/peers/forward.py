"""A forward pass of other networks beside the same network written plainly in Flax Linen, by the TPU compiler.

Command: python -m benchmarks.peers.forward [MODEL ...] [--target v5e] [--dtype bfloat16]; it writes a dated file. The
figures are the compiler's estimates, not measurements.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.hardware import Dtype
from benchmarks.launches import memory_bytes
from benchmarks.peers import convolutions, zoo
from benchmarks.peers.compiled import devices
from benchmarks.timing import write_report
from benchmarks.tpu_estimates import CHIPS, Xla
from gnp_scale.config import MeshConfig, ModelConfig
from gnp_scale.mesh import BATCH, P, make_mesh, sharding
from gnp_scale.models import pyramidnet, registry

PLAIN: dict[str, tuple[type[nn.Module], int]] = {
    "mixer_b": (zoo.Mixer, 224),
    "convnext_t": (zoo.ConvNeXt, 224),
    "swin_t": (zoo.Swin, 224),
    "cait_xxs24": (zoo.Cait, 224),
    "vgg16_bn": (convolutions.Vgg, 224),
    "wrn_28_10": (convolutions.WideResNet, 32),
    "shake_shake_26_2x32d": (convolutions.ShakeShake, 32),
    "pyramidnet_110_270": (convolutions.PyramidNet, 32),
}
"""The network in Flax Linen, and the height and width of its images."""
SHORT = {"pyramidnet_110_270": (pyramidnet.LAYOUTS, (pyramidnet.BasicBlock, 20, 270), "9 of 54 blocks")}
"""Shorter layouts, also for the peer: each block of a PyramidNet has its own width, which takes the compiler long."""
BATCH_SIZE = 64
SETTING = f"""\
A forward pass in training, with the statistics of the batch where a network has them, without dropout and random
branches. One device, batch {BATCH_SIZE}, only XLA. The peer is the same network written plainly in Flax Linen
(`benchmarks/peers/zoo.py`, `convolutions.py`; tests compare parameters and FLOPs). Cycles are estimates of the TPU
compiler, and bytes those that the programs read and write in the memory of the device. Nothing here was measured on a
device.

| target | model | type | cycles | peer's | bytes | peer's |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Compiles the networks and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(PLAIN), metavar="MODEL", help=", ".join(PLAIN))
    parser.add_argument("--target", choices=CHIPS, default="v5e")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        (model,) = args.models
        texts = [each.as_text() for each in compiled(model, args.target, args.dtype)]
        print(json.dumps([(Xla.of(text).cycles, memory_bytes(text)) for text in texts]))
        return
    rows = [row(model, args.target, args.dtype) for model in args.models]
    write_report("forward", "A forward pass beside the plain network", [SETTING, *rows])


def row(model: str, target: str, dtype: Dtype) -> str:
    """A row of Markdown, from a process with the environment of the target's compiler."""
    command = [sys.executable, "-m", "benchmarks.peers.forward", model, "--target", target, "--dtype", dtype, "--one"]
    environment = os.environ | CHIPS[target].environment()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    (cycles, num_bytes), (peer_cycles, peer_bytes) = json.loads(done.stdout)
    cells = (
        f"{cycles / 1e6:.2f} M ({cycles / peer_cycles:.2f}) | {peer_cycles / 1e6:.2f} M | "
        f"{num_bytes / 1e9:.2f} GB ({num_bytes / peer_bytes:.2f}) | {peer_bytes / 1e9:.2f} GB"
    )
    print(model, cells, flush=True)
    name = f"{model}, {SHORT[model][2]}" if model in SHORT else model
    return f"| {target} | {name} | {dtype} | {cells} |"


def compiled(model: str, target: str, dtype: Dtype) -> list[Any]:
    """The compiled forward passes: the project's, and the peer's."""
    if model in SHORT:
        layouts, layout, _ = SHORT[model]
        layouts[model] = layout
    config, size = ModelConfig(model, dtype=dtype), PLAIN[model][1]
    mesh = make_mesh(MeshConfig(), devices(target))
    shape = (BATCH_SIZE, size, size, 3)
    with jax.set_mesh(mesh):
        own, state = own_pass(config, size, 1000)
        image = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding(P(BATCH, None, None, None)))
        traced = [jax.jit(own).trace(*state, image)]
    device = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
    apply, variables = plain_pass(config, size, 1000)
    on_device = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), variables)
    traced.append(jax.jit(apply).trace(on_device, jax.ShapeDtypeStruct(shape, jnp.float32, sharding=device)))
    return [each.lower(lowering_platforms=("tpu",)).compile() for each in traced]


def own_pass(config: ModelConfig, size: int, num_classes: int) -> tuple[Any, Any]:
    """The project's forward pass, and the shapes of its parameters and statistics."""
    model = registry.create(config, (size, size, 3), num_classes, BATCH_SIZE)
    state = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return lambda params, stats, x: model.network(params, stats)(x, train=True), state


def plain_pass(config: ModelConfig, size: int, num_classes: int) -> tuple[Any, Any]:
    """The peer's forward pass, and the shapes of its variables."""
    network = PLAIN[config.name][0](config, num_classes)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), image)

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return network.apply(variables, x, mutable=["batch_stats"])[0]

    return apply, variables


if __name__ == "__main__":
    main()
