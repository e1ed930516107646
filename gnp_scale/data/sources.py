"""The data sets, each as two splits: small sets in memory, and sets of encoded images in folders.

N examples, B examples of a batch, H rows, W columns, C channels, K classes, D draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np

from gnp_scale.config import ConfigError, DataConfig, check
from gnp_scale.data.formats import DamagedFileError, checked_labels, read_cifar, read_idx
from gnp_scale.data.parts import parts_of

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""The folder of Debian's package `dataset-fashion-mnist`."""


UNREADABLE = -1
"""The label of an image that cannot be used, in a batch for evaluation."""

type Rows = dict[str, np.ndarray]


class Examples(Protocol):
    """The examples of a split, with random access."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        ...

    def __len__(self) -> int: ...

    def read(self, chosen_B: np.ndarray, draw_BxD: np.ndarray | None) -> Rows:
        """`image` (uint8 B x H x W x C) and `label` (int32 B) of the examples `chosen`.

        `draw` (uniform in [0, 1)) decides their random crops, if the images have one; evaluation has no draws.
        """
        ...


@dataclass(frozen=True)
class Split:
    """Examples in memory: uint8 images (N x H x W x C) and int32 labels (N)."""

    image: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.image.shape[1:]
        return height, width, channels

    def read(self, chosen_B: np.ndarray, draw_BxD: np.ndarray | None) -> Rows:
        """The examples `chosen`; these images are not cropped here."""
        return {"image": self.image[chosen_B], "label": self.label[chosen_B]}


@dataclass(frozen=True)
class Dataset:
    """A data set, with the mean and standard deviation of each channel of its training images, scaled to [0, 1]."""

    name: str
    train: Examples
    test: Examples
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_answers: int = 0
    """Columns of `answers` in batches for evaluation: all right labels of an image. 0: there are no such batches."""
    class_names: tuple[str, ...] = ()
    """In the order of the labels; empty if the data set has none."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.train.image_shape

    def class_name(self, label: int) -> str:
        """The name of a class, in one line of text; its label if it has none."""
        name = self.class_names[label] if self.class_names else ""
        return " ".join(name.encode(errors="replace").decode().split()) or str(label)

    @property
    def sizes(self) -> dict[str, int]:
        """What the examples of each step and of each evaluation depend on."""
        return {
            "training images": len(self.train),
            "evaluated images": len(self.test),
            "classes": self.num_classes,
        }


@dataclass(frozen=True)
class CifarLayout:
    """The files of one of the CIFAR data sets, and the statistics of its training images."""

    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    num_label_bytes: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_train: int = 50_000
    num_test: int = 10_000
    names_file: str = ""
    """The names of the classes, one in each line."""


# Means and standard deviations over all pixels of the training images, as published in most recipes.
CIFAR_LAYOUTS = {
    "cifar10": CifarLayout(
        folder="cifar-10-batches-bin",
        train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test_files=("test_batch.bin",),
        num_label_bytes=1,
        num_classes=10,
        mean=(0.49139968, 0.48215841, 0.44653091),
        std=(0.24703223, 0.24348513, 0.26158784),
        names_file="batches.meta.txt",
    ),
    "cifar100": CifarLayout(
        folder="cifar-100-binary",
        train_files=("train.bin",),
        test_files=("test.bin",),
        num_label_bytes=2,
        num_classes=100,
        mean=(0.50707516, 0.48654887, 0.44091784),
        std=(0.26733429, 0.25643846, 0.27615047),
        names_file="fine_label_names.txt",
    ),
}
FASHION_MNIST_MEAN, FASHION_MNIST_STD = (0.28604060,), (0.35302424,)
FASHION_MNIST_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
"""As in its own description (github.com/zalandoresearch/fashion-mnist)."""


def load(config: DataConfig) -> Dataset:
    """The data set that `config` names.

    Raises:
        ConfigError: its files are missing or damaged; the message says how to get them.
    """
    readers: dict[str, Callable[[], Dataset]] = {
        "digits": _digits,
        "fashion_mnist": lambda: _fashion_mnist(Path(config.root) / "fashion_mnist"),
        "cifar10": lambda: _cifar("cifar10", Path(config.root) / "cifar10"),
        "cifar100": lambda: _cifar("cifar100", Path(config.root) / "cifar100"),
        "synthetic": lambda: _synthetic(config),
    }
    if config.name not in readers:
        return _images(config, tuple(readers))
    command = f"run `gnp-scale data download {config.name} --root {config.root}`"
    try:
        dataset = readers[config.name]()
    except FileNotFoundError as error:
        if "://" in config.root:
            reason = f"data.root is {config.root}, but {config.name} is read from a local folder: give one"
            raise ConfigError(reason) from error
        folder = Path(config.root) / config.name
        raise ConfigError(
            f"data set {config.name} is not in {folder}: {command} ({error.filename} is missing)"
        ) from error
    except DamagedFileError as error:
        raise ConfigError(f"data set {config.name} is damaged: {error}; {command}") from error
    train, test = dataset.train, dataset.test
    assert isinstance(train, Split), "small sets are in memory"
    assert isinstance(test, Split), "small sets are in memory"
    return parts_of(dataset, train, test, config)


def _images(config: DataConfig, others: tuple[str, ...]) -> Dataset:
    # The decoders take half a second to import, and small sets do not need them.
    from gnp_scale.data.images import load_images

    for name in ("num_examples", "label_noise"):
        value = getattr(config, name)
        check(not value, f"data.{name} is {value}, but {config.name} is a folder of images: it is for the small sets")
    try:
        return load_images(config)
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no data set {config.name}: give the name of a folder in data.root ({config.root}), or one of "
            f"{', '.join(others)}"
        ) from error


def _digits() -> Dataset:
    """Scikit-learn's 1,797 digits, 8 x 8; sorted by class, every fifth example is a test example (360)."""
    # Reading its file takes milliseconds, and importing scikit-learn a second at every start.
    file = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows_Nx65 = np.loadtxt(str(file), np.int32, delimiter=",")
    level_Nx64, label_N = rows_Nx65[:, :64], rows_Nx65[:, 64]
    # The 17 grey levels 0..16 become 0..255.
    image_NxHxWxC = (level_Nx64 * 255 // 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    by_class_N = np.argsort(label_N, kind="stable")
    is_test_N = np.zeros(len(label_N), bool)
    is_test_N[by_class_N[::5]] = True
    train = Split(image_NxHxWxC[~is_test_N], label_N[~is_test_N])
    test = Split(image_NxHxWxC[is_test_N], label_N[is_test_N])
    return Dataset("digits", train, test, 10, *channel_statistics(train.image))


def _fashion_mnist(folder: Path) -> Dataset:
    """Fashion-MNIST (arXiv 1708.07747) from `folder`, or from Debian's package if there is no such folder."""
    if not folder.exists() and DEBIAN_FASHION_MNIST.exists():
        folder = DEBIAN_FASHION_MNIST

    def read_split(prefix: str) -> Split:
        image_NxHxW = read_idx(_plain_or_gzipped(folder / f"{prefix}-images-idx3-ubyte"), ndim=3)
        label_N = read_idx(_plain_or_gzipped(folder / f"{prefix}-labels-idx1-ubyte"), ndim=1)
        return Split(image_NxHxW[..., None], checked_labels(label_N, 10, len(image_NxHxW), folder))

    train, test = read_split("train"), read_split("t10k")
    statistics = FASHION_MNIST_MEAN, FASHION_MNIST_STD
    return Dataset("fashion_mnist", train, test, 10, *statistics, class_names=FASHION_MNIST_NAMES)


def _plain_or_gzipped(path: Path) -> Path:
    return path if path.exists() else path.with_name(f"{path.name}.gz")


def _cifar(name: str, root: Path) -> Dataset:
    layout = CIFAR_LAYOUTS[name]
    folder = root / layout.folder

    def read_split(files: tuple[str, ...], num_examples: int) -> Split:
        image, label = read_cifar([folder / file for file in files], layout.num_label_bytes, num_examples)
        return Split(image, checked_labels(label, layout.num_classes, num_examples, folder))

    train = read_split(layout.train_files, layout.num_train)
    test = read_split(layout.test_files, layout.num_test)
    names = _names_in(folder / layout.names_file, layout.num_classes)
    return Dataset(name, train, test, layout.num_classes, layout.mean, layout.std, class_names=names)


def _names_in(file: Path, num_classes: int) -> tuple[str, ...]:
    """The names of the classes; none if the file has been removed or changed, because nothing depends on them."""
    names = file.read_text(errors="replace").split() if file.exists() else []
    return tuple(names) if len(names) == num_classes else ()


def _synthetic(config: DataConfig) -> Dataset:
    """Noise plus one pattern of 4 x 4 coloured blocks for each class; a quarter as many test examples."""
    num_classes, size = config.synthetic_num_classes, config.synthetic_image_size
    block_Kx4x4xC = np.random.default_rng(0).integers(32, 224, (num_classes, 4, 4, 3), dtype=np.int16)
    block_of_pixel = np.arange(size) * 4 // size
    pattern_KxHxWxC = block_Kx4x4xC[:, block_of_pixel][:, :, block_of_pixel]

    def draw_split(seed: int, num_examples: int) -> Split:
        label_N = np.arange(num_examples, dtype=np.int32) % num_classes
        noise = np.random.default_rng(seed).integers(-32, 32, (num_examples, size, size, 3), dtype=np.int16)
        return Split((pattern_KxHxWxC[label_N] + noise).astype(np.uint8, order="C"), label_N)

    train = draw_split(1, config.synthetic_num_examples)
    test = draw_split(2, max(1, config.synthetic_num_examples // 4))
    return Dataset("synthetic", train, test, num_classes, *channel_statistics(train.image))


def channel_statistics(image_NxHxWxC: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, scaled to [0, 1]."""
    mean_C = image_NxHxWxC.mean(axis=(0, 1, 2), dtype=np.float64) / 255
    std_C = image_NxHxWxC.std(axis=(0, 1, 2), dtype=np.float64) / 255
    return tuple(mean_C.tolist()), tuple(std_C.tolist())
