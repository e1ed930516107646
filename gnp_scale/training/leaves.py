"""What the path of a parameter tells: the axes of a kernel, its place in the depth, and whether it is frozen."""

import operator
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from gnp_kernels.trees import path_name

from gnp_scale.checks import closest
from gnp_scale.config import ConfigError, OptimConfig, check
from gnp_scale.gnp import Axes

type Params = Any
"""Nested dicts of float32 arrays, whose last key names the kind of parameter: kernel, bias, scale, ..."""

_STACKS = ("blocks", "class_blocks", "stages", "merging", "downsamplings")
"""Modules with a number for each block; a shortcut between stages belongs to the first block after it."""
_STEM = ("embed", "patches", "position", "token", "registers", "conv")
"""Modules and parameters that images reach before the first block."""


def names_of(path: Any) -> tuple[str, ...]:
    """The keys of a path in nested dicts."""
    return tuple(key.key for key in path)


def is_stacked(names: Sequence[str]) -> bool:
    """Whether the first axis of the parameter numbers the blocks that `model.scan_layers` stacks."""
    return names[0] == "blocks" and not names[1][0].isdigit()


def kernel_axes(names: Sequence[str], num_dims: int) -> Axes:
    """The axes of the kernel `names` of this rank.

    The last axis is that of outputs, except in the projections to queries, keys and values: their kernels end with
    heads and channels (D x H x K), and may have all three (D x 3 x H x K).
    """
    axes = tuple(range(is_stacked(names), num_dims))
    is_attention = "attention" in names or names[0] == "attention_pool"
    if is_attention and "out_proj" not in names and len(axes) > 2:
        return Axes(axes[:1], axes[-2:])
    return Axes(axes[:-1], axes[-1:])


def layer_axes(path: str, shape: tuple[int, ...]) -> Axes:
    """The axes of any parameter; those that are no kernels have only outputs."""
    names = path.split("/")
    if names[-1] == "kernel":
        return kernel_axes(names, len(shape))
    return Axes((), tuple(range(is_stacked(names), len(shape))))


def layer_factors(params: Params, decay: float) -> Params:
    """For each parameter decay^(n - i) in block i of n blocks, with 0 for what is before them and n for the head.

    Blocks count from 1, and the last normalisation is part of the head (arXiv 2106.08254; as in MAE and DeiT). Stacked
    blocks have an array, with axes of length 1 for those of the parameter.

    Raises:
        ConfigError: the network has no such order of layers.
    """
    check(
        any(name in params for name in ("embed", "patches", "norm_head")),
        f"optim.layer_decay is {decay}: it is for transformers, MLP-Mixer and ConvNeXt; leave it at 1",
    )
    paths = [names_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    places = sorted({place for names in paths if (place := _place(names)) is not None})
    depth = len(places) + sum(x.shape[0] - 1 for x in _stacked_leaves(params)[:1])
    number_of = {place: number for number, place in enumerate(places, start=1)}
    number_of |= {place: depth - len(places) + number for place, number in number_of.items() if place[0] > 0}

    def factor(path: Any, w: jax.Array) -> Any:
        names = names_of(path)
        if is_stacked(names):
            powers = decay ** (depth + 1 - np.arange(1, w.shape[0] + 1, dtype=np.float32))
            return powers.reshape(-1, *(1,) * (w.ndim - 1))
        place = _place(names)
        is_stem = names[0] in _STEM or (names[0] == "norm" and "norm_head" in params)
        number = (0 if is_stem else depth + 1) if place is None else number_of[place]
        return decay ** (depth + 1 - number)

    return jax.tree.map_with_path(factor, params)


def _stacked_leaves(params: Params) -> list[jax.Array]:
    return [w for path, w in jax.tree.leaves_with_path(params) if is_stacked(names_of(path))]


def _place(names: Sequence[str]) -> tuple[int, int] | None:
    """(stage, number) of the block of a parameter; None outside of blocks."""
    if names[0] not in _STACKS:
        return None
    if is_stacked(names):
        return 0, 0
    numbers = [int(part) for part in names[1].split("_")]
    match names[0]:
        case "merging" | "downsamplings":
            return numbers[0], 0
        case "stages":
            return numbers[0], int(names[2])
        case "class_blocks":
            return 1, numbers[0]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, numbers[0])


def is_frozen(path: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns of `optim.frozen` matches the path of a parameter, such as "embed/kernel"."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def frozen_mask(params: Params, config: OptimConfig) -> Any:
    """Pytree of bool: which parameters `optim.frozen` names.

    Raises:
        ConfigError: a pattern names none, or all parameters are frozen.
    """
    paths = {path_name(path) for path, _ in jax.tree.leaves_with_path(params)}
    for pattern in config.frozen:
        if not any(is_frozen(path, [pattern]) for path in paths):
            hint = f"{closest(pattern, sorted(paths))}there are {len(paths)}, such as {min(paths)}"
            raise ConfigError(f"optim.frozen has {pattern}, which names no parameter: {hint}")
    found = jax.tree.map_with_path(lambda path, _: is_frozen(path_name(path), config.frozen), params)
    check(not all(jax.tree.leaves(found)), f"optim.frozen is {' '.join(config.frozen)}, which leaves nothing to train")
    return found


def trained(tree: Params, config: OptimConfig) -> Params:
    """The tree of all parameters without the frozen ones, and without modules that have no others."""
    return _without(tree, frozen_mask(tree, config)) if config.frozen else tree


def frozen(tree: Params, config: OptimConfig) -> Params:
    """What `trained` leaves out."""
    return _without(tree, jax.tree.map(operator.not_, frozen_mask(tree, config))) if config.frozen else {}


def _without(tree: Params, mask: Any) -> Params:
    kept = {
        name: _without(part, mask[name]) if isinstance(part, dict) else part
        for name, part in tree.items()
        if mask[name] is not True
    }
    return {name: part for name, part in kept.items() if not isinstance(part, dict) or part}


def overlaid(tree: Params, part: Params) -> Params:
    """`tree` with the leaves of `part`, which has some of its paths."""
    if not isinstance(tree, dict):
        return part
    return {name: overlaid(own, part[name]) if name in part else own for name, own in tree.items()}


def unless(mask: Any, new: Any, old: Any) -> Any:
    """`new`, but `old` where the mask is True."""
    return jax.tree.map(lambda is_old, x, y: y if is_old else x, mask, new, old)


def has_frozen_norm(path: str, patterns: Sequence[str]) -> bool:
    """Whether the scale and the bias of the normalisation `path` are frozen: its batch statistics are then, too."""
    return all(is_frozen(f"{path}/{name}", patterns) for name in ("scale", "bias"))


def frozen_statistics(batch_stats: Any, config: OptimConfig) -> Any:
    """Pytree of bool: which batch statistics belong to a normalisation with frozen scale and bias."""
    return jax.tree.map_with_path(lambda path, _: has_frozen_norm(path_name(path[:-1]), config.frozen), batch_stats)
