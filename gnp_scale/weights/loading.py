"""Initial parameters from a file of pretrained weights: compared by name and shape, resampled, and put on the mesh."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from gnp_kernels.trees import path_name

from gnp_scale.config import ConfigError, ModelConfig, check
from gnp_scale.run import consensus
from gnp_scale.run.files import sha256
from gnp_scale.run.store import Folder
from gnp_scale.weights import resample
from gnp_scale.weights.files import OPTION, Tensors, opened, weights_file
from gnp_scale.weights.places import Place, Places, blocks_of, has_rows_for_registers, jax_places, torch_places
from gnp_scale.weights.report import Report, check_unchanged

type Shape = tuple[int, ...]


@dataclass(frozen=True)
class Initial:
    """The initial parameters and batch statistics that `model.init_from` gives."""

    config: ModelConfig
    image_shape: tuple[int, int, int]
    abstract: Any
    """Shapes, types and shardings of parameters and batch statistics, as a pair of trees."""

    def check(self) -> Report:
        """Compares the file with the network, in every process; reads all of it.

        Raises:
            ConfigError: the file is missing, damaged, or for another network; it has numbers that are not finite; or it
                differs between processes. Every process raises.
        """
        report, problem = None, None
        try:
            report = self._report()
        except ConfigError as error:
            problem = str(error)
        problem, hashes = consensus.agree(problem, report and report.sha256)
        if problem is not None:
            raise ConfigError(problem)
        assert report is not None
        is_same = len(set(hashes)) == 1
        check(is_same, f"{OPTION} {report.file} is not the same file on all machines: copy one of them to all")
        return report

    def check_unchanged(self, run_dir: Folder) -> None:
        """As `report.check_unchanged`, for the file as it is now."""
        path = weights_file(self.config.init_from)
        check_unchanged(run_dir, str(path), sha256(path))

    def load(self) -> Any:
        """The pair of trees with arrays, of which each device has its shards; None where the file has nothing.

        Raises: ConfigError: as `check`, but in this process alone.
        """
        with opened(weights_file(self.config.init_from), self._num_positions) as tensors:

            def load(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array | None:
                block_paths, shape = blocks_of(_text(path), leaf.shape, self.config)
                values = [self._value(block_path, shape, tensors) for block_path in block_paths]
                found = [value for value in values if value is not None]
                if len(found) < len(values):
                    return None
                array = np.stack(found).reshape(leaf.shape)
                return jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)

            return jax.tree_util.tree_map_with_path(load, self.abstract)

    @cached_property
    def _places(self) -> Places:
        return (jax_places if self.config.init_from.endswith(".npz") else torch_places)(self.config)

    @property
    def _num_positions(self) -> int | None:
        """Rows of positions that are none of registers; None if they cannot be told from those."""
        position = None if has_rows_for_registers(self.config) else self.abstract[0].get("position")
        return None if position is None else position.shape[0]

    def _report(self) -> Report:
        path = weights_file(self.config.init_from)
        report = Report(str(path), sha256(path))
        with opened(path, self._num_positions) as tensors:
            shapes, bad = _survey(tensors)
        for tree_path, leaf in jax.tree_util.tree_leaves_with_path(self.abstract):
            block_paths, shape = blocks_of(_text(tree_path), leaf.shape, self.config)
            are_used = {self._compare(block_path, shape, shapes, report) for block_path in block_paths}
            check(
                len(are_used) == 1,
                f"{OPTION} {path} has {_text(tree_path)} for some blocks only, and model.scan_layers keeps all in one "
                "array: turn it off",
            )
        known = {*report.used, *report.replaced, *report.reshaped}
        report.extra = sorted(shapes.keys() - known)
        report.check(self.config.name, self.config.init_allow)
        wrong = sorted(bad & {*report.used})
        check(not wrong, f"{OPTION} {path} has numbers in {', '.join(wrong[:3])} that are not finite: use another file")
        return report

    def _compare(self, path: str, shape: Shape, shapes: dict[str, Shape], report: Report) -> bool:
        """Adds the tensors of one array to the report; returns whether they are used."""
        place = self._places(path)
        missing = [name for name in place.names if name not in shapes]
        if missing:
            report.missing += missing
            return False
        found = [shapes[name] for name in place.names]
        if found != _expected(place, shape):
            if _is_other_head(path, place, found, shape):
                report.replaced += place.names
                return False
            if self._fitted(path, place.from_file([_empty(given) for given in found]), shape) is None:
                report.reshaped += place.names
                return False
            report.resampled += place.names
        report.used += place.names
        return True

    def _value(self, path: str, shape: Shape, tensors: Tensors) -> np.ndarray | None:
        place = self._places(path)
        if not all(name in tensors for name in place.names):
            return None
        values = [tensors[name]() for name in place.names]
        found = [value.shape for value in values]
        if found == _expected(place, shape):
            return np.reshape(place.from_file(values), shape)
        return None if _is_other_head(path, place, found, shape) else self._fitted(path, place.from_file(values), shape)

    def _fitted(self, path: str, array: np.ndarray, shape: Shape) -> np.ndarray | None:
        """Positions or patches of another size, resampled to `shape`; None for any other array."""
        if array.ndim < 2 or array.shape[-1] != shape[-1]:
            return None
        match path.split("/"):
            case ["position"]:
                height, width = (side // self.config.patch_size for side in self.image_shape[:2])
                num_before, old_NxD = shape[0] - height * width, array.reshape(-1, shape[-1])
                if self.config.pool == "token" and not num_before and not resample.square(len(old_NxD)):
                    # A class token that has a position there, and none here, would lose it.
                    return None
                return resample.positions(old_NxD, (height, width), num_before)
            case ["embed", "kernel"] if array.ndim == 4 and array.shape[2] == shape[2]:
                return resample.patches(array, (shape[0], shape[1]))
            case [*_, "attention", "position"] if side := resample.square(math.prod(array.shape[:-1])):
                return resample.relative_positions(array.reshape(side, side, -1), (shape[0], shape[1]))
        return None


def _text(path: Any) -> str:
    """The path of a leaf of a pair of trees, in its tree."""
    return path_name(path[1:])


def _survey(tensors: Tensors) -> tuple[dict[str, Shape], set[str]]:
    """The shape of each tensor, and the names of those with numbers that are not finite."""
    shapes, bad = {}, set()
    for name, read in tensors.items():
        tensor = read()
        shapes[name] = tensor.shape
        if not np.isfinite(tensor).all():
            bad.add(name)
    return shapes, bad


def _empty(shape: Shape) -> np.ndarray:
    """An array of this shape that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def _expected(place: Place, shape: Shape) -> list[Shape]:
    return [array.shape for array in place.to_file(_empty(shape))]


def _is_other_head(path: str, place: Place, found: Sequence[Shape], shape: Shape) -> bool:
    """Whether these are the tensors of a head that differs in the number of classes only."""
    if not path.startswith("head/") or [len(given) for given in found] != [len(due) for due in _expected(place, shape)]:
        return False
    return place.from_file([_empty(given) for given in found]).shape[:-1] == shape[:-1]
