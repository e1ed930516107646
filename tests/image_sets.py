"""The same ten images, written in each form in which data sets of images are kept."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

NUM_TRAIN, NUM_IMAGES = 7, 10
CLASS_NAMES = ("zero", "one", "two")
FIXTURE = Path(__file__).parent / "fixtures" / "tfds_numbers.tar.xz"


def png(number: int) -> bytes:
    """Image `number`: 4 x 5 pixels of this value."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def jpeg(pixels_HxWx3: np.ndarray, **options) -> bytes:
    """An image as JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels_HxWx3).save(file, "JPEG", **options)
    return file.getvalue()


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours and some noise, as in a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    noise = random.integers(-8, 9, (height, width, 3))
    return np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)


def split_of(number: int) -> str:
    """The split of an image, as in the fixture of TensorFlow Datasets."""
    return "train" if number < NUM_TRAIN else "val"


def write_tfds(root: Path) -> Path:
    """What TensorFlow Datasets wrote (tests/fixtures/make_tfds.py)."""
    with tarfile.open(FIXTURE) as tar:
        tar.extractall(root, filter="data")
    return root / "numbers" / "1.0.0"


def write_folder(root: Path) -> Path:
    """A folder for each class in a folder for each split. In the order of their names, `one` is class 0."""
    for number in range(NUM_IMAGES):
        folder = root / split_of(number) / CLASS_NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.PNG").write_bytes(png(number))
    return root


def write_webdataset(root: Path) -> Path:
    """Two shards for training, one for validation, with the names of the classes."""
    shards = {"set-train-0000": range(4), "set-train-0001": range(4, 7), "set-validation-0000": range(7, 10)}
    for shard, numbers in shards.items():
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for number in numbers:
                add(tar, f"some.folder/{number:04d}.json", b"{}")
                # Either may come first.
                members = [(f"{number:04d}.png", png(number)), (f"{number:04d}.cls", str(number % 3).encode())]
                for name, data in members if number % 2 else reversed(members):
                    add(tar, f"some.folder/{name}", data)
    (root / "classnames.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    return root


def write_imagenet(root: Path) -> Path:
    """A tar of a tar for each class, a tar of the validation images, and the devkit with their labels."""
    from scipy.io import savemat

    wnids = ["n03", "n07", "n09"]
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for label, wnid in enumerate(wnids):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for number in range(label, NUM_TRAIN, 3):
                    add(tar, f"{wnid}_{number}.JPEG", png(number))
            add(outer, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in reversed(range(NUM_TRAIN, NUM_IMAGES)):
            add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", png(number))
    # The numbers of the devkit are in another order than the names.
    number_of = {"n03": 3, "n07": 1, "n09": 2}
    synsets = np.array([(number_of[wnid], wnid) for wnid in wnids], [("ILSVRC2012_ID", "O"), ("WNID", "O")])
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{number_of[wnids[number % 3]]}\n" for number in range(NUM_TRAIN, NUM_IMAGES))
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    return root


def write_parquet(root: Path) -> Path:
    """Files as those of Hugging Face, with row groups of two images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASS_NAMES), "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    (root / "data").mkdir()
    files = {
        "train-00000-of-00002": range(4),
        "train-00001-of-00002": range(4, 7),
        "validation-00000-of-00001": range(7, 10),
    }
    for name, numbers in files.items():
        images = [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]
        table = pa.table({"image": images, "label": pa.array([number % 3 for number in numbers], pa.int64())})
        pq.write_table(table.replace_schema_metadata(metadata), root / "data" / f"{name}.parquet", row_group_size=2)
    return root


def write_grocery(root: Path) -> Path:
    """Lists of images with their labels, and a table of the classes that is not in their order."""
    rows = [f"{name},{label},Coarse,0,x,y" for label, name in reversed(list(enumerate(CLASS_NAMES)))]
    (root / "classes.csv").write_text(
        "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),x,y\n" + "\n".join(rows)
    )
    for split in ("train", "val", "test"):
        numbers = [number for number in range(NUM_IMAGES) if split_of(number) == split]
        (root / split).mkdir()
        for number in numbers:
            (root / split / f"{number}.jpg").write_bytes(png(number))
        (root / f"{split}.txt").write_text("".join(f"{split}/{number}.jpg, {number % 3}, 0\n" for number in numbers))
    return root


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file to a tar file."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


WRITERS = {
    "tfds": write_tfds,
    "image_folder": write_folder,
    "webdataset": write_webdataset,
    "imagenet_tars": write_imagenet,
    "parquet": write_parquet,
    "grocery_store": write_grocery,
}


def train_shards(folder: Path) -> list[Path]:
    """Whole shards of training images."""
    names = ("*-train.array_record-*-of-?????", "*-train-?????.tar")
    return sorted(path for name in names for path in folder.glob(name))
