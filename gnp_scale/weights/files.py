"""Opens files of weights: tensors by name, each read when it is asked for. Nothing is unpickled."""

import contextlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16
from safetensors import SafetensorError, safe_open

from gnp_scale.checks import local_path
from gnp_scale.config import ConfigError
from gnp_scale.run.streams import one_line
from gnp_scale.weights.renames import canonical_jax_name, torch_names

type Tensors = Mapping[str, Callable[[], np.ndarray]]
"""Functions that read the tensors, by name."""

OPTION = "model.init_from"
_PICKLES = (".pth", ".pt", ".bin", ".th", ".ckpt", ".tar", ".pkl")
_CONVERT = (
    """python -c "import sys, torch; from safetensors.torch import save_file; d = torch.load(sys.argv[1], 'cpu', """
    """weights_only=True); d = d.get('state_dict', d.get('model', d)); save_file({k: v.clone().contiguous() for k, v """
    """in d.items()}, sys.argv[2])" """
)
_PREFIXES = ("params/img/", "params/", "opt/target/", "target/")
"""Of the images' part of SigLIP, and of the parameters in checkpoints."""
_DAMAGE = (SafetensorError, zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, LookupError)
_FLOATS = ("F64", "F32", "F16", "BF16")
"""Of safetensors. Narrower numbers, and integers, need a scale to be weights."""


def weights_file(text: str) -> Path:
    """The local file that `model.init_from` names.

    Raises: ConfigError: it is not there, or of a kind that is not read.
    """
    path = local_path(OPTION, text)
    if path.suffix in _PICKLES:
        raise ConfigError(
            f"{OPTION} is {text}, a pickle, which can run code: convert it where PyTorch is installed, with "
            f"{_CONVERT}{path.name} {path.stem}.safetensors"
        )
    if path.suffix not in (".safetensors", ".npz"):
        raise ConfigError(f"{OPTION} is {text}: give a file whose name ends in .safetensors or .npz")
    if not path.is_file():
        raise ConfigError(f"{OPTION} is {text}: there is no such file")
    return path


@contextlib.contextmanager
def opened(path: Path, num_positions: int | None = None) -> Iterator[Tensors]:
    """The tensors of a file of weights, by the names of the newest version of its library (`torch_names`).

    Raises: ConfigError: it is damaged, or cannot be read; also in the block.
    """
    try:
        with contextlib.ExitStack() as stack:
            yield _safetensors(path, stack, num_positions) if path.suffix == ".safetensors" else _npz(path, stack)
    except ConfigError:
        raise
    except _DAMAGE as error:
        raise ConfigError(f"{OPTION} is {path}, which cannot be read ({one_line(error)}): fetch it again") from error


def _safetensors(path: Path, stack: contextlib.ExitStack, num_positions: int | None) -> Tensors:
    file = stack.enter_context(safe_open(path, "numpy"))

    def read(name: str) -> np.ndarray:
        if (dtype := file.get_slice(name).get_dtype()) not in _FLOATS:
            raise ValueError(f"{name} has the type {dtype}, not one of {', '.join(_FLOATS)}")
        return _float32(file.get_tensor(name))

    return torch_names({name: partial(read, name) for name in file.keys()}, num_positions)  # noqa: SIM118


def _npz(path: Path, stack: contextlib.ExitStack) -> Tensors:
    with _zip_errors_are_value_errors():
        archive = np.load(stack.enter_context(path.open("rb")), allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array")
    stack.enter_context(archive)
    # Checkpoints of training also have the state of the optimizer.
    prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in archive.files)), "")
    tensors: dict[str, Callable[[], np.ndarray]] = {}
    for key in archive.files:
        if key.startswith(prefix):
            read = partial(_array, archive, key)
            tensors |= _of_each_block(canonical_jax_name(key.removeprefix(prefix)), read)
    return tensors


def _of_each_block(name: str, read: Callable[[], np.ndarray]) -> Tensors:
    """A tensor, or, if big_vision has stacked those of all blocks to scan over them, its parts."""
    stack = "Transformer/encoderblock/"
    if not name.startswith(stack):
        return {name: read}
    # Until the file is closed: to read a stack for each block would take a time that is quadratic in their number.
    read = cache(read)
    return {
        re.sub(f"^{stack}", f"Transformer/encoderblock_{number}/", name): lambda number=number: read()[number]
        for number in range(len(read()))
    }


@contextlib.contextmanager
def _zip_errors_are_value_errors() -> Iterator[None]:
    """Zip files with wrong bytes may seem to be encrypted, or of a version or compression that Python lacks."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _array(archive: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    with _zip_errors_are_value_errors():
        array = archive[key]
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        # NumPy's files have no name for bfloat16.
        array = array.view(bfloat16)
    if array.dtype.kind != "f" and array.dtype != bfloat16:
        raise ValueError(f"{key} has the type {array.dtype}, which is none of weights")
    return _float32(array)


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
