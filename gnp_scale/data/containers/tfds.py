"""Folders of TensorFlow Datasets in ArrayRecord files, read without TensorFlow, and the files that describe them.

`gnp-scale data prepare` writes such folders, so TensorFlow Datasets and what is built on it can read them too.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gnp_scale.config import ConfigError
from gnp_scale.data.containers import example_proto
from gnp_scale.data.containers.array_records import ArrayRecords
from gnp_scale.data.containers.entries import check_inside
from gnp_scale.data.containers.record import Contents, Ids, Record, split_name
from gnp_scale.data.formats import MOST_CLASSES, DamagedFileError, lines_of
from gnp_scale.run.store import Folder
from gnp_scale.run.store_requests import StoreError

INFO_FILE, FEATURES_FILE, LABELS_FILE = "dataset_info.json", "features.json", "{label}.labels.txt"
FILE_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_CHUNK = 64
"""Records in memory while all labels are read."""
_FEATURE = "tensorflow_datasets.core.features"


class TfdsSplit:
    """The examples of a split; `image` and `label` are the names of their features."""

    def __init__(self, records: ArrayRecords, image: str, label: str, num_classes: int) -> None:
        self.records = records
        self._image, self._label, self._num_classes = image, label, num_classes

    def __len__(self) -> int:
        return len(self.records)

    def read(self, ids: Ids) -> list[Record]:
        """The records `ids`."""
        return [self._record(number, found) for number, found in zip(ids, self.records.read(ids), strict=True)]

    def labels(self) -> np.ndarray:
        """The labels of all records, which are all read."""
        parts = (range(start, min(start + _CHUNK, len(self))) for start in range(0, len(self), _CHUNK))
        return np.array([record.label for part in parts for record in self.read(part)], np.int64)

    def _record(self, number: int, found: bytes | Exception) -> Record:
        path, place = self.records.place(int(number))
        name = f"record {place} of {path.rpartition('/')[2]}"
        if isinstance(found, Exception):
            return Record(b"", -1, name, f"its container is damaged ({found})")
        try:
            data, label, file = example_proto.parse(found, self._image, self._label)
        except ValueError as error:
            return Record(b"", -1, name, str(error))
        if not 0 <= label < self._num_classes:
            return Record(b"", -1, name, f"its label {label} is not one of {self._num_classes} classes")
        return Record(data, label, file or name)


def is_tfds(folder: Folder) -> bool:
    """Whether `folder` is a version of a data set, such as imagenet2012/5.1.0."""
    return (folder / INFO_FILE).exists()


def open_tfds(folder: Folder) -> Contents:
    """The data set in `folder`. No shard is opened.

    Raises:
        ConfigError: it is not in ArrayRecord files, or not one of images with one label.
        DamagedFileError: the files that describe it cannot be read.
        StoreError: the store that has them does not answer.
    """
    info, features = (_read_json(folder / name) for name in (INFO_FILE, FEATURES_FILE))
    try:
        return _described(folder, info, features)
    except ConfigError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{folder} has a {INFO_FILE} or {FEATURES_FILE} of another form ({error}): get them again"
        ) from error


def _described(folder: Folder, info: Mapping[str, Any], features: Mapping[str, Any]) -> Contents:
    if info.get("fileFormat") != "array_record":
        raise ConfigError(
            f"{folder} is in {info.get('fileFormat', 'tfrecord')} files, which have no random access: prepare the data "
            'set with file_format="array_record", as TensorFlow Datasets calls it'
        )
    image, label = _supervised_keys(folder, info, features)
    class_names = _class_names(folder, features["featuresDict"]["features"], label)
    splits = {
        split_name(split["name"]): TfdsSplit(_records(folder, info, split), image, label, len(class_names))
        for split in info["splits"]
        if split.get("shardLengths")
    }
    return Contents("tfds", class_names, splits)


def _read_json(path: Folder) -> Any:
    try:
        return json.loads(path.read_text())
    except StoreError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error


def _supervised_keys(folder: Folder, info: Mapping[str, Any], features: Mapping[str, Any]) -> tuple[str, str]:
    """Names of the image and of its label: the supervised keys, or the only features of these types."""
    kinds = {name: entry.get("pythonClassName", "") for name, entry in features["featuresDict"]["features"].items()}
    images = [name for name, kind in kinds.items() if kind.endswith(".Image")]
    labels = [name for name, kind in kinds.items() if kind.endswith(".ClassLabel")]
    items = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
    keys = [item.get("featureKey") for item in items]
    if len(keys) == 2 and keys[0] in images and keys[1] in labels:
        return keys[0], keys[1]
    if len(images) != 1 or len(labels) != 1:
        raise ConfigError(
            f"{folder} has the images {images} and class labels {labels}: a set with one of each is needed"
        )
    return images[0], labels[0]


def _class_names(folder: Folder, features: Mapping[str, Any], label: str) -> tuple[str, ...]:
    num_classes = int(features[label]["classLabel"]["numClasses"])
    if num_classes > MOST_CLASSES:
        raise DamagedFileError(f"{folder / FEATURES_FILE} tells of {num_classes} classes, above {MOST_CLASSES}")
    file = folder / LABELS_FILE.format(label=label)
    if not file.exists():
        return tuple(str(number) for number in range(num_classes))
    names = tuple(lines_of(file))
    if len(names) != num_classes:
        raise DamagedFileError(f"{file} has {len(names)} names, where {FEATURES_FILE} tells of {num_classes} classes")
    return names


def _records(folder: Folder, info: Mapping[str, Any], split: Mapping[str, Any]) -> ArrayRecords:
    lengths = [int(length) for length in split["shardLengths"]]
    template = split.get("filepathTemplate") or FILE_TEMPLATE
    names = [shard_file(template, info["name"], split["name"], number, len(lengths)) for number in range(len(lengths))]
    check_inside(folder / INFO_FILE, names)
    return ArrayRecords([str(folder / name) for name in names], lengths)


def shard_file(template: str, dataset: str, split: str, number: int, num_shards: int) -> str:
    """The name of a shard: `FILE_TEMPLATE`, or that of `dataset_info.json`."""
    values = {
        "DATASET": dataset,
        "SPLIT": split,
        "FILEFORMAT": "array_record",
        "SHARD_INDEX": f"{number:05d}",
        "NUM_SHARDS": f"{num_shards:05d}",
        "SHARD_X_OF_Y": f"{number:05d}-of-{num_shards:05d}",
    }
    return re.sub(r"{(\w+)}", lambda match: values[match[1]], template)


def description(
    dataset: str, class_names: Sequence[str], splits: Mapping[str, Sequence[tuple[int, int]]]
) -> dict[str, str]:
    """The texts of the files that describe a data set, by name; of each shard of a split: its examples and bytes."""
    info = {
        "fileFormat": "array_record",
        "name": dataset,
        "splits": [
            {
                "filepathTemplate": FILE_TEMPLATE,
                "name": name,
                "numBytes": str(sum(num_bytes for _, num_bytes in shards)),
                "shardLengths": [str(length) for length, _ in shards],
            }
            for name, shards in splits.items()
        ],
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "version": "1.0.0",
    }
    image = {"dtype": "uint8", "encodingFormat": "jpeg", "shape": {"dimensions": ["-1", "-1", "3"]}}
    features = {
        "file_name": {"pythonClassName": f"{_FEATURE}.text_feature.Text", "text": {}},
        "image": {"pythonClassName": f"{_FEATURE}.image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{_FEATURE}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(len(class_names))},
        },
    }
    all_features = {"pythonClassName": f"{_FEATURE}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    return {
        LABELS_FILE.format(label="label"): "".join(f"{name}\n" for name in class_names),
        FEATURES_FILE: json.dumps(all_features, indent=2),
        INFO_FILE: json.dumps(info, indent=2),
    }
