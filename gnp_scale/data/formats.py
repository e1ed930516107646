"""Readers of the binary formats of image data sets: IDX and CIFAR. Neither format can contain code to run.

N examples, H rows, W columns, C channels.
"""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gnp_scale.config import ConfigError
from gnp_scale.run.store import Folder

CIFAR_SHAPE_CxHxW = (3, 32, 32)
MOST_CLASSES = 1_000_000
"""Of a data set: each has a name in memory."""


class DamagedFileError(ConfigError):
    """A file exists but does not match its format."""


def lines_of(path: Folder) -> list[str]:
    """The lines of a text file, local or on a store.

    Raises:
        DamagedFileError: it is no text in UTF-8.
    """
    try:
        return path.read_bytes().decode().splitlines()
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path} is no text in UTF-8 ({error}): write it in UTF-8") from error


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array of rank `ndim` in an IDX file, gzipped if its name ends in `.gz`.

    The format: two zero bytes, the type (8 is uint8), the rank, each dimension as a big-endian 32-bit integer, the
    values row by row (yann.lecun.com/exdb/mnist).

    Raises:
        DamagedFileError: another magic number, or fewer or more values than the header states.
    """
    content = _decompressed(path)
    magic = bytes((0, 0, 8, ndim))
    if content[:4] != magic:
        raise DamagedFileError(f"{path} begins with {content[:4].hex()}, where an IDX file has {magic.hex()}")
    num_header_bytes = 4 + 4 * ndim
    shape = tuple(int(size) for size in np.frombuffer(content[4:num_header_bytes].ljust(4 * ndim, b"\0"), ">u4"))
    num_bytes = num_header_bytes + math.prod(shape)
    if len(content) != num_bytes:
        raise DamagedFileError(f"{path} holds {len(content)} bytes, where its header tells of {num_bytes}")
    return np.frombuffer(content, np.uint8, offset=num_header_bytes).reshape(shape)


def read_cifar(paths: Sequence[Path], num_label_bytes: int, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (uint8 N x 32 x 32 x 3) and labels (uint8 N) of CIFAR's binary files, one after the other.

    A record is `num_label_bytes` labels, the last one the finest, and the red, green and blue planes
    (cs.toronto.edu/~kriz/cifar.html).

    Raises:
        DamagedFileError: the files do not hold `num_examples` records.
    """
    num_record_bytes = num_label_bytes + math.prod(CIFAR_SHAPE_CxHxW)
    content = np.concatenate([np.fromfile(path, np.uint8) for path in paths])
    if content.size != num_examples * num_record_bytes:
        names = ", ".join(path.name for path in paths)
        raise DamagedFileError(
            f"{names} in {paths[0].parent} hold {content.size} bytes, where {num_examples} examples of "
            f"{num_record_bytes} bytes are due"
        )
    record_NxR = content.reshape(num_examples, num_record_bytes)
    image_NxCxHxW = record_NxR[:, num_label_bytes:].reshape(num_examples, *CIFAR_SHAPE_CxHxW)
    return np.ascontiguousarray(image_NxCxHxW.transpose(0, 2, 3, 1)), record_NxR[:, num_label_bytes - 1]


def checked_labels(label_N: np.ndarray, num_classes: int, num_examples: int, where: Path) -> np.ndarray:
    """`label_N` as int32.

    Raises:
        DamagedFileError: the number of labels is not the number of examples, or a label is not a class.
    """
    if len(label_N) != num_examples:
        raise DamagedFileError(f"{where} holds {num_examples} images but {len(label_N)} labels")
    highest = int(label_N.max(initial=0))
    if highest >= num_classes:
        raise DamagedFileError(f"{where} holds label {highest}, where labels are below {num_classes}")
    return label_N.astype(np.int32)


def _decompressed(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as stream:
            return stream.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DamagedFileError(f"{path} cannot be decompressed: {error}") from error
