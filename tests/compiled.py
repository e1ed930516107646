"""Compiled training steps, and the collectives in their HLO text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

from gnp_scale.config import Config, DataConfig, GnpConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.gnp import StepKind
from gnp_scale.planning.collectives import BETWEEN_SLICES, KINDS, groups_of
from gnp_scale.planning.hlo import Instruction, Program
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

MESH = MeshConfig(replica=2, fsdp=4)
# Wide, so that kernels outweigh the vectors that FSDP replicates: nothing is run, and width costs no compile time.
VIT = ModelConfig("vit_mu", patch_size=2, depth=1, width=1024, num_heads=4, dropout=0.1)

_SOURCES = re.compile(
    r"^(?:FileNames|FunctionNames|FileLocations|StackFrames)$|^\d+ [\"{].*$|, metadata=\{[^{}]*\}", re.MULTILINE
)


class Collective(NamedTuple):
    """One instruction, as each device runs it."""

    kind: str
    num_bytes: int
    """Bytes of its result on one device."""
    num_scalars: int
    """Number of scalars in its result."""
    groups: tuple[tuple[int, ...], ...]
    """The groups of devices that communicate, by their position in the mesh."""
    arrays: tuple[tuple[str, int], ...]
    """Type and number of entries of each array of its result on one device."""


def step_text(gnp: GnpConfig, mesh: jax.sharding.Mesh, kind: StepKind = StepKind.FULL, **train: str) -> str:
    """HLO of the training step of a small vision transformer, compiled for the devices of `mesh`.

    Without mixup, which moves one row between neighbours in every kind of step.
    """
    config = Config(
        data=DataConfig(batch_size=64, eval_batch_size=64, crop_padding=1),
        model=VIT,
        gnp=gnp,
        optim=OptimConfig(clip_norm=5.0),
        mesh=MESH,
        train=TrainConfig(**train),
    )
    with jax.set_mesh(mesh):
        task = Task.of(config)
        traced = make_train_step(task).trace(task.abstract_state(), task.abstract_batch(), kind=kind)
        return traced.lower(lowering_platforms=(mesh.devices.flat[0].platform,)).compile().as_text()


def without_sources(text: str) -> str:
    """HLO without the Python source lines, which depend on what was traced before."""
    return "\n".join(filter(None, _SOURCES.sub("", text).splitlines()))


def collectives(text: str) -> list[Collective]:
    """All collectives of a program, in order."""
    return list(_collectives(text))


def _collectives(text: str) -> Iterator[Collective]:
    for each in _instructions(text):
        # The result of an asynchronous start also holds its operands.
        assert each.opcode not in {f"{kind}-start" for kind in KINDS}, each
        if each.opcode in KINDS:
            sizes = tuple((array.dtype, math.prod(array.shape)) for array in each.results)
            num_scalars = sum(array.shape == () for array in each.results)
            yield Collective(each.opcode, each.num_bytes, num_scalars, groups_of(each), sizes)


def sends_between_slices(text: str) -> list[int]:
    """Bytes of each message that a device sends to other TPU slices."""
    sends = (each for each in _instructions(text) if each.opcode == "send" and BETWEEN_SLICES in each.rest)
    return [each.results[0].num_bytes for each in sends]


def _instructions(text: str) -> Iterator[Instruction]:
    for computation in Program.parse(text).computations.values():
        yield from computation.instructions.values()
