"""Compiled training steps, and the collectives in their HLO text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

from benchmarks.launches import ARRAY, NUM_BYTES
from gnp_scale.config import Config, DataConfig, GnpConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.gnp import StepKind
from gnp_scale.planning.collectives import parse_groups
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

MESH = MeshConfig(replica=2, fsdp=4)
# Wide, so that kernels outweigh the vectors that FSDP replicates: nothing is run, and width costs no compile time.
VIT = ModelConfig("vit_mu", patch_size=2, depth=1, width=1024, num_heads=4, dropout=0.1)

_COLLECTIVE = re.compile(
    r" = (?P<result>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|"
    r"collective-broadcast)(?P<start>-start)?\(.*?, (?P<groups>(?:replica_groups|source_target_pairs)=.*)"
)
_SEND = re.compile(r" = \((?P<array>[^(){]*).* send\(.*_xla_host_transfer_handler_name=\"xla_megascale_runtime\"")


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
    for match in filter(None, map(_COLLECTIVE.search, text.splitlines())):
        # The result of an asynchronous start also holds its operands.
        assert not match["start"], match[0]
        arrays = ARRAY.findall(match["result"])
        num_scalars = sum(shape == "" for _, shape, _ in arrays)
        sizes = tuple((dtype, _num_entries(shape)) for dtype, shape, _ in arrays)
        yield Collective(
            match["kind"],
            _num_bytes(match["result"]),
            num_scalars,
            parse_groups(match["groups"].partition("=")[2]),
            sizes,
        )


def sends_between_slices(text: str) -> list[int]:
    """Bytes of each message that a device sends to other TPU slices."""
    return [_num_bytes(match["array"]) for match in map(_SEND.search, text.splitlines()) if match]


def _num_bytes(result: str) -> int:
    return sum(NUM_BYTES[dtype] * _num_entries(shape) for dtype, shape, _ in ARRAY.findall(result))


def _num_entries(shape: str) -> int:
    return math.prod(int(size) for size in shape.split(",") if size)
