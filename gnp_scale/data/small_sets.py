"""The small sets, whose images are in memory.

N examples, H rows, W columns, C channels, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from gnp_scale.config import DataConfig
from gnp_scale.data.dataset import Dataset, Split
from gnp_scale.data.formats import checked_labels, read_cifar, read_idx
from gnp_scale.run.messages import announce

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""The folder of Debian's package `dataset-fashion-mnist`."""


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
        announce(f"there is no {folder}: Fashion-MNIST is read from {DEBIAN_FASHION_MNIST}")
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


READERS: dict[str, Callable[[DataConfig], Dataset]] = {
    "digits": lambda _: _digits(),
    "fashion_mnist": lambda config: _fashion_mnist(Path(config.root) / "fashion_mnist"),
    "cifar10": lambda config: _cifar("cifar10", Path(config.root) / "cifar10"),
    "cifar100": lambda config: _cifar("cifar100", Path(config.root) / "cifar100"),
    "synthetic": _synthetic,
}
"""What reads each of them."""
