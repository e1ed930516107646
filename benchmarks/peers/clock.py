"""Times the steps on the CPU, one after another in each round: the project's, Flax Linen's and PyTorch's."""

import argparse
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from gnp_kernels.timing import interleave, ratio

from benchmarks.peers.steps import make_config, peer_state, peer_step
from benchmarks.tasks import KINDS, compile_steps, make_batch, updates
from gnp_scale.config import MeshConfig, ModelConfig
from gnp_scale.mesh import make_mesh
from gnp_scale.run import environment
from gnp_scale.training.setup import Task

BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES = 64, 32, 10
MODELS = {
    "ResNet-18, CIFAR stem": ("resnet", ModelConfig("resnet18", stem="cifar")),
    "ViT-Ti, patch 4": ("vit", ModelConfig("vit_ti", patch_size=4)),
}
"""The name of the model in `torch_steps.py`, and the project's own."""


def rows(num_rounds: int, torch_python: str | None) -> Iterator[str]:
    """One row of Markdown a step: its milliseconds in the project, and the ratios to the peers.

    Linen's steps run in the same process, with the project's settings of dispatch and memory.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    environment.keep_freed_memory()
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        for title, (torch_name, model) in MODELS.items():
            seconds = interleave({**steps_of(model), **torch_steps(torch_name, torch_python)}, num_rounds)
            for kind in KINDS:
                cells = [
                    ratio(seconds, f"ours {kind}", f"{peer} {kind}") if f"{peer} {kind}" in seconds else "not run"
                    for peer in ("Linen", "PyTorch", "PyTorch, channels last")
                ]
                median = sorted(seconds[f"ours {kind}"])[num_rounds // 2]
                yield f"| {title} | {kind} | {1000 * median:.0f} | " + " | ".join(cells) + " |"


def steps_of(model: ModelConfig) -> dict[str, Callable[[], Any]]:
    """The project's and Linen's steps: each function makes one update of its own state."""
    task = Task.of(make_config(model, BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES))
    compiled = compile_steps(task, list(KINDS.values()))
    ours = {f"ours {name}": updates(task, compiled, [kind]) for name, kind in KINDS.items()}
    batch = jax.device_put(jax.device_get(make_batch(task)), jax.devices()[0])
    state = jax.device_put(jax.device_get(peer_state(task, task.init_state())), jax.devices()[0])
    return ours | {f"Linen {name}": peer_updates(peer_step(task, name), state, batch) for name in KINDS}


def peer_updates(step: Any, state: Any, batch: Any) -> Callable[[], Any]:
    """A function that updates a copy of `state`."""
    state = jax.tree.map(lambda x: x.copy(), state)

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    return run


def torch_steps(name: str, python: str | None) -> Mapping[str, Callable[[], Any]]:
    """PyTorch's steps, which run in processes of the interpreter `python`; none without one."""
    if python is None:
        return {}
    script = Path(__file__).with_name("torch_steps.py")

    def ask(process: subprocess.Popen[str], kind: str) -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        print(kind, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    found = {}
    for title, channels_last in {"PyTorch": False, "PyTorch, channels last": True}.items():
        command = [python, str(script), name, str(BATCH_SIZE), str(channels_last)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()  # The version of PyTorch: the process is ready.
        found |= {f"{title} {kind}": partial(ask, process, kind) for kind in KINDS}
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--torch-python", help="an interpreter with PyTorch")
    args = parser.parse_args()
    print(HEADER)
    for row in rows(args.rounds, args.torch_python):
        print(row, flush=True)


HEADER = """\
| model, float32 | step | ours, ms | ours / Flax Linen | ours / PyTorch | ours / PyTorch, channels last |
|---|---|---|---|---|---|"""

if __name__ == "__main__":
    main()
