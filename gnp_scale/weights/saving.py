"""Writes the parameters of a run into files of other libraries."""

import io
import json
from typing import Any

import jax
import numpy as np
from gnp_kernels.trees import path_name
from safetensors.numpy import save

from gnp_scale import __version__
from gnp_scale.config import Config, ModelConfig
from gnp_scale.data.dataset import Dataset
from gnp_scale.run.streams import say
from gnp_scale.weights.places import Places, blocks_of, has_rows_for_registers, jax_places, torch_places
from gnp_scale.weights.renames import released_jax_name
from gnp_scale.weights.timm_names import architecture

type State = tuple[Any, Any]
"""Parameters and batch statistics."""


def as_safetensors(config: Config, state: State, step: int, dataset: Dataset | None) -> bytes:
    """A PyTorch state dict with the names of timm, and what timm needs to make its network, as metadata.

    Args:
        config: That of the run.
        state: Float32 arrays.
        step: The step after which they were saved.
        dataset: That of the run, for the size and the normalisation of images; None if it is not at hand.
    """
    tensors = _tensors(config.model, state, torch_places(config.model))
    if has_rows_for_registers(config.model):
        position = tensors["pos_embed"]
        tensors["pos_embed"] = np.insert(position, [1] * config.model.num_registers, 0, axis=1)
    counters = [name.replace("running_mean", "num_batches_tracked") for name in tensors if "running_mean" in name]
    tensors |= dict.fromkeys(counters, np.array(step, np.int64))
    num_classes = jax.tree.leaves(state[0]["head"])[0].shape[-1]
    return save(tensors, _metadata(config.model, num_classes, step, dataset))


def as_npz(config: Config, state: State) -> bytes:
    """An .npz with the names of vision_transformer for a ViT with a class token and learned positions, and else with
    those of big_vision.

    Raises: ConfigError: neither has the network.
    """
    tensors = _tensors(config.model, state, jax_places(config.model))
    if "cls" in tensors and "pos_embedding" in tensors:
        tensors = {released_jax_name(name): array for name, array in tensors.items()}
    else:
        tensors = {f"params/{name}": array for name, array in tensors.items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **tensors)
    return file.getvalue()


def _tensors(config: ModelConfig, state: State, places: Places) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for tree_path, leaf in jax.tree_util.tree_leaves_with_path(state):
        own = path_name(tree_path[1:])
        paths, shape = blocks_of(own, leaf.shape, config)
        for path, array in zip(paths, np.asarray(leaf).reshape(-1, *shape), strict=True):
            place = places(path)
            values = map(np.ascontiguousarray, place.to_file(array))
            tensors |= dict(zip(place.names, values, strict=True))
    return tensors


def _metadata(config: ModelConfig, num_classes: int, step: int, dataset: Dataset | None) -> dict[str, str]:
    values: dict[str, Any] = {"network": config.name, "step": step, "num_classes": num_classes}
    if dataset is not None:
        height, width, channels = dataset.image_shape
        values |= {"input_size": [channels, height, width], "mean": dataset.mean, "std": dataset.std}
        if (found := architecture(config, dataset.image_shape)) is not None:
            name, arguments = found
            values |= {"architecture": name, "model_args": arguments | {"in_chans": channels}}
        else:
            say(f"timm has no network like this {config.name}: the file names none; its tensors have the nearest names")
    # Readers of Hugging Face look at the format.
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return {"format": "pt", "made_by": f"gnp_scale {__version__}", **text}
