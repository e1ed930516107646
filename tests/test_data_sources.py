"""The data sets: the examples match the bytes of the files, and missing or damaged files give one line."""

import dataclasses
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from gnp_scale.config import ConfigError, DataConfig
from gnp_scale.data import small_sets
from gnp_scale.data.dataset import Dataset
from gnp_scale.data.small_sets import CIFAR_LAYOUTS, DEBIAN_FASHION_MNIST, channel_statistics
from gnp_scale.data.sources import load

RANDOM = np.random.default_rng(0)


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_fashion_mnist(root: Path, gzipped: bool) -> dict[str, np.ndarray]:
    folder = root / "fashion_mnist"
    folder.mkdir(parents=True)
    arrays = {}
    for prefix, num_examples in (("train", 5), ("t10k", 3)):
        arrays[f"{prefix}-images-idx3-ubyte"] = RANDOM.integers(0, 256, (num_examples, 28, 28), np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = RANDOM.integers(0, 10, num_examples, np.uint8)
    for name, values in arrays.items():
        content = idx_bytes(values)
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return arrays


def test_a_small_set_is_not_read_from_a_bucket():
    with pytest.raises(ConfigError, match=r"data\.root is s3://bucket/data, but cifar10 is read from a local folder"):
        load(DataConfig("cifar10", root="s3://bucket/data"))


@pytest.mark.parametrize("gzipped", [False, True])
def test_fashion_mnist_is_what_the_files_hold(tmp_path: Path, gzipped: bool):
    arrays = write_fashion_mnist(tmp_path, gzipped)
    dataset = load(DataConfig(name="fashion_mnist", root=str(tmp_path)))
    for split, prefix in ((dataset.train, "train"), (dataset.test, "t10k")):
        np.testing.assert_array_equal(split.image[..., 0], arrays[f"{prefix}-images-idx3-ubyte"])
        np.testing.assert_array_equal(split.label, arrays[f"{prefix}-labels-idx1-ubyte"])
    assert dataset.image_shape == (28, 28, 1)
    assert (dataset.class_name(0), dataset.class_name(9)) == ("T-shirt/top", "Ankle boot")


def write_cifar(root: Path, name: str, monkeypatch) -> dict[str, np.ndarray]:
    """Two examples for each file of data set `name`: random bytes, with valid labels."""
    layout = CIFAR_LAYOUTS[name]
    small = dataclasses.replace(layout, num_train=2 * len(layout.train_files), num_test=2)
    monkeypatch.setitem(CIFAR_LAYOUTS, name, small)
    folder = root / name / layout.folder
    folder.mkdir(parents=True)
    records = {}
    for file in (*layout.train_files, *layout.test_files):
        record_NxR = RANDOM.integers(0, 256, (2, layout.num_label_bytes + 3072), np.uint8)
        record_NxR[:, : layout.num_label_bytes] %= 10
        (folder / file).write_bytes(record_NxR.tobytes())
        records[file] = record_NxR
    (folder / layout.names_file).write_text("".join(f"class-{label}\n" for label in range(layout.num_classes)) + "\n")
    return records


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_what_the_files_hold(name, tmp_path: Path, monkeypatch):
    records = write_cifar(tmp_path, name, monkeypatch)
    dataset, layout = load(DataConfig(name=name, root=str(tmp_path))), CIFAR_LAYOUTS[name]
    for split, files in ((dataset.train, layout.train_files), (dataset.test, layout.test_files)):
        record_NxR = np.concatenate([records[file] for file in files])
        # The fine label is the last one, and the planes follow one after the other, row by row.
        np.testing.assert_array_equal(split.label, record_NxR[:, layout.num_label_bytes - 1])
        for channel, row, column in ((0, 0, 0), (1, 2, 3), (2, 31, 30)):
            byte = layout.num_label_bytes + channel * 1024 + row * 32 + column
            np.testing.assert_array_equal(split.image[:, row, column, channel], record_NxR[:, byte])
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.num_classes == {"cifar10": 10, "cifar100": 100}[name]
    assert dataset.class_names == tuple(f"class-{label}" for label in range(dataset.num_classes))


@pytest.mark.parametrize("content", [None, b"", b"one\ntwo\n", b"\xff" * 5], ids=["gone", "empty", "two", "no text"])
def test_cifar_is_read_without_the_names_of_its_classes(content: bytes | None, tmp_path: Path, monkeypatch):
    write_cifar(tmp_path, "cifar10", monkeypatch)
    file = tmp_path / "cifar10" / CIFAR_LAYOUTS["cifar10"].folder / CIFAR_LAYOUTS["cifar10"].names_file
    file.unlink() if content is None else file.write_bytes(content)
    dataset = load(DataConfig(name="cifar10", root=str(tmp_path)))
    assert dataset.class_names == ()
    assert dataset.class_name(3) == "3"


def test_digits_are_split_by_class():
    dataset = load(DataConfig(name="digits"))
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    assert dataset.image_shape == (8, 8, 1)
    shares = [np.bincount(split.label) / len(split) for split in (dataset.train, dataset.test)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.003)
    assert (dataset.train.image.min(), dataset.train.image.max()) == (0, 255)
    from sklearn.datasets import load_digits  # it takes seconds

    level_Nx64, label_N = (np.asarray(array) for array in load_digits(return_X_y=True))
    image_NxHxWxC = (level_Nx64 * 255 // 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    is_test_N = np.isin(np.arange(len(label_N)), np.argsort(label_N, kind="stable")[::5])
    for split, is_in_N in ((dataset.train, ~is_test_N), (dataset.test, is_test_N)):
        np.testing.assert_array_equal(split.image, image_NxHxWxC[is_in_N])
        np.testing.assert_array_equal(split.label, label_N[is_in_N])


def test_synthetic_is_reproducible_and_tells_its_classes_apart():
    config = DataConfig(name="synthetic", synthetic_num_examples=64, synthetic_image_size=10, synthetic_num_classes=4)
    dataset, again = load(config), load(config)
    np.testing.assert_array_equal(dataset.train.image, again.train.image)
    assert (len(dataset.train), len(dataset.test), dataset.image_shape) == (64, 16, (10, 10, 3))
    mean_KxHxWxC = np.stack([dataset.train.image[dataset.train.label == k].mean(axis=0) for k in range(4)])
    distance_NxK = np.abs(dataset.test.image[:, None] - mean_KxHxWxC[None]).sum(axis=(2, 3, 4))
    np.testing.assert_array_equal(distance_NxK.argmin(axis=1), dataset.test.label)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_every_split_has_the_types_of_the_contract(name):
    dataset = load(DataConfig(name=name))
    for split in (dataset.train, dataset.test):
        assert (split.image.dtype, split.label.dtype) == (np.uint8, np.int32)
        assert split.image.flags.c_contiguous


def test_statistics_are_those_of_the_channels():
    image = np.zeros((2, 1, 1, 2), np.uint8)
    image[:, 0, 0] = [[0, 255], [255, 255]]
    assert channel_statistics(image) == ((0.5, 1.0), (0.5, 0.0))


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100"])
def test_missing_files_name_the_command(name, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(small_sets, "DEBIAN_FASHION_MNIST", tmp_path / "no package")
    with pytest.raises(ConfigError) as caught:
        load(DataConfig(name=name, root=str(tmp_path)))
    line = str(caught.value)
    assert f"data set {name} is not in {tmp_path / name}: " in line
    assert f"run `gnp-scale data download {name} --root {tmp_path}`" in line
    assert "\n" not in line


def test_another_place_of_fashion_mnist_is_told(tmp_path: Path, monkeypatch, capsys):
    write_fashion_mnist(tmp_path / "package", gzipped=True)
    package = tmp_path / "package" / "fashion_mnist"
    monkeypatch.setattr(small_sets, "DEBIAN_FASHION_MNIST", package)
    wrong, right = (DataConfig(name="fashion_mnist", root=str(tmp_path / root)) for root in ("packages", "package"))
    np.testing.assert_array_equal(load(wrong).train.image, load(right).train.image)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"there is no {tmp_path}/packages/fashion_mnist: Fashion-MNIST is read from {package}"


@pytest.mark.parametrize("name", ["cifar10", "own"])
@pytest.mark.parametrize("root", ["file", "x" * 300])
def test_a_root_that_cannot_be_read_is_one_line(name, root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data set|data\.root") as error:
        load(DataConfig(name=name, root=str(tmp_path / root)))
    assert "\n" not in str(error.value)


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path):
    (tmp_path / "cifar10" / "cifar-10-batches-bin" / "data_batch_1.bin").mkdir(parents=True)
    with pytest.raises(ConfigError, match="data set cifar10"):
        load(DataConfig(name="cifar10", root=str(tmp_path)))


def truncated(content: bytes) -> bytes:
    return content[:-10]


DAMAGE = {
    "truncated": (truncated, "bytes, where its header tells of"),
    "longer": (lambda content: content + b"\0", "bytes, where its header tells of"),
    "other magic": (
        lambda content: b"\0\0\x0d\x03" + content[4:],
        "begins with 00000d03, where an IDX file has 00000803",
    ),
    "cut in the header": (lambda content: content[:6], "6 bytes, where its header tells of"),
    "empty": (lambda content: b"", "begins with , where"),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("gzipped", [False, True])
def test_damaged_idx_files_are_named(tmp_path: Path, damage, expected: str, gzipped: bool):
    write_fashion_mnist(tmp_path, gzipped)
    path = tmp_path / "fashion_mnist" / f"train-images-idx3-ubyte{'.gz' if gzipped else ''}"
    if gzipped:
        path.write_bytes(gzip.compress(damage(gzip.decompress(path.read_bytes()))))
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"^data set fashion_mnist is damaged: ") as caught:
        load(DataConfig(name="fashion_mnist", root=str(tmp_path)))
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("damage", [truncated, lambda content: b"no gzip", lambda content: content[:40] + b"x" * 40])
def test_a_damaged_gzip_stream_is_named(tmp_path: Path, damage):
    write_fashion_mnist(tmp_path, gzipped=True)
    path = tmp_path / "fashion_mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"t10k-labels-idx1-ubyte\.gz cannot be decompressed: "):
        load(DataConfig(name="fashion_mnist", root=str(tmp_path)))


def test_labels_must_fit_images_and_classes(tmp_path: Path):
    write_fashion_mnist(tmp_path, gzipped=False)
    path = tmp_path / "fashion_mnist" / "train-labels-idx1-ubyte"
    for label_N, expected in (
        (np.array([0, 1, 10, 2, 3], np.uint8), "holds label 10, where labels are below 10"),
        (np.array([0, 1], np.uint8), "holds 5 images but 2 labels"),
    ):
        path.write_bytes(idx_bytes(label_N))
        with pytest.raises(ConfigError, match=expected):
            load(DataConfig(name="fashion_mnist", root=str(tmp_path)))


def test_a_cut_cifar_file_is_told_even_at_a_record(tmp_path: Path, monkeypatch):
    write_cifar(tmp_path, "cifar10", monkeypatch)
    path = tmp_path / "cifar10" / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:3073])
    with pytest.raises(ConfigError, match="hold 27657 bytes, where 10 examples of 3073 bytes are due"):
        load(DataConfig(name="cifar10", root=str(tmp_path)))


@pytest.fixture(scope="module")
def real_fashion_mnist(tmp_path_factory) -> Dataset:
    if not DEBIAN_FASHION_MNIST.exists():
        pytest.skip("apt-get install dataset-fashion-mnist")
    return load(DataConfig(name="fashion_mnist", root=str(tmp_path_factory.mktemp("no-data-here"))))


def test_the_real_fashion_mnist(real_fashion_mnist: Dataset):
    dataset = real_fashion_mnist
    assert (dataset.train.image.shape, dataset.test.image.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    np.testing.assert_array_equal(np.bincount(dataset.train.label), np.full(10, 6000))
    level_256 = np.bincount(dataset.train.image.ravel(), minlength=256) / dataset.train.image.size
    mean = level_256 @ np.arange(256) / 255
    std = np.sqrt(level_256 @ (np.arange(256) / 255) ** 2 - mean**2)
    np.testing.assert_allclose((*dataset.mean, *dataset.std), (mean, std), atol=1e-7)
