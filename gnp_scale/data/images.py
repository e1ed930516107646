"""Splits of encoded images: each batch is read and decoded by a pool of threads, straight into its array.

An image that cannot be used is named once. In training the next example of the split takes its place, so the batch of a
step still depends on the seed and the step alone. In evaluation it does not count. Too many of them end the run.

B examples, H rows, W columns, D draws, N examples of a split.
"""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gnp_scale.checks import local_path
from gnp_scale.config import ConfigError, DataConfig
from gnp_scale.data import decode
from gnp_scale.data.containers.open_folder import open_folder
from gnp_scale.data.containers.record import Contents, Record, Source
from gnp_scale.data.dataset import UNREADABLE, Dataset, Rows
from gnp_scale.data.label_files import LabelFile, read_label_file
from gnp_scale.data.noisy_labels import NoisyLabels
from gnp_scale.data.parts import HOLDOUT, check_holdout, drawn, held_out, label_shifts
from gnp_scale.run.streams import say

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the training images of ImageNet, as in torchvision and timm."""
_CHUNK = 16
"""Images that a thread reads at once."""
_PER_CPU_OF_BUCKETS = 4
"""Threads: 16 images take 35 ms to decode, and up to 100 ms to arrive."""
_MOST_NAMED = 20
"""Images whose problems are printed."""
_ALIGNMENT_BYTES = 64
"""Of arrays that JAX uses on CPUs as they are; others it copies."""


@dataclass
class ImageSplit:
    """The examples `ids` of a source, as images of `config.image_size` (uint8 B x H x W x 3) and labels."""

    name: str
    source: Source
    ids: np.ndarray
    config: DataConfig
    answers: LabelFile | None = None
    """All right labels of the images, for evaluation."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._problems: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.config.image_size, self.config.image_size, 3

    def read(self, chosen_B: np.ndarray, draw_BxD: np.ndarray | None) -> Rows:
        """The examples `chosen`, with random crops by `draw`, or with centre crops if it is None.

        With `answers` there is an array of this name: the right labels of each image (int32 B x R), padded by -1.
        Without draws, the label of an image that cannot be used is `UNREADABLE`.

        Raises:
            ConfigError: too many images cannot be used.
        """
        image_BxHxWx3 = _aligned((len(chosen_B), *self.image_shape))
        label_B = np.empty(len(chosen_B), np.int32)
        answer_BxR = np.full((len(chosen_B), self.answers.num_answers if self.answers else 0), -1, np.int32)

        def fill(start: int) -> None:
            rows = range(start, min(start + _CHUNK, len(chosen_B)))
            records = self.source.read(self.ids[chosen_B[rows]])
            for row, record in zip(rows, records, strict=True):
                draw_D = None if draw_BxD is None else draw_BxD[row]
                label_B[row] = self._fill(int(chosen_B[row]), record, draw_D, image_BxHxWx3[row])
                if self.answers is not None and label_B[row] != UNREADABLE:
                    answer_BxR[row] = self.answers.labels(record.name)

        for future in [self._pool.submit(fill, start) for start in range(0, len(chosen_B), _CHUNK)]:
            future.result()
        rows = {"image": image_BxHxWx3, "label": label_B}
        return rows if self.answers is None else rows | {"answers": answer_BxR}

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(num_threads(self.config), f"decode {self.name}")

    def _fill(self, number: int, record: Record, draw_D: np.ndarray | None, out_HxWx3: np.ndarray) -> int:
        """Decodes the example `number` or its replacement; returns the label."""
        while (problem := self._decode(record, draw_D, out_HxWx3)) is not None:
            self._note(number, record.name, problem)
            if draw_D is None:
                out_HxWx3[:] = 0
                return UNREADABLE
            number = (number + 1) % len(self)
            (record,) = self.source.read(self.ids[[number]])
        return record.label

    def _decode(self, record: Record, draw_D: np.ndarray | None, out_HxWx3: np.ndarray) -> str | None:
        """Decodes a record; returns what is wrong with it, if anything."""
        if record.problem:
            return record.problem
        try:
            if draw_D is None:
                decode.centre_crop(record.data, self.config.eval_crop, self.config.eval_filter, out_HxWx3)
            else:
                decode.random_crop(record.data, draw_D, self.config.crop_area, out_HxWx3)
        except decode.ImageError as error:
            return str(error)
        return None

    def _note(self, number: int, name: str, problem: str) -> None:
        with self._lock:
            if number in self._problems:
                return
            self._problems[number] = problem
            num_problems = len(self._problems)
        if num_problems > self.config.max_damaged * len(self):
            raise ConfigError(
                f"{num_problems} of {len(self)} {self.name} images cannot be used, more than data.max_damaged "
                f"{self.config.max_damaged:g}; the last is {name}: {problem}. See gnp-scale data verify --decode; run "
                "gnp-scale data index if images were removed, or raise the limit"
            )
        if num_problems <= _MOST_NAMED:
            more = "; further ones are not named" if num_problems == _MOST_NAMED else ""
            say(f"{self.name} image {number} cannot be used: {name}: {problem}{more}")


def num_threads(config: DataConfig) -> int:
    """`config.num_threads`, or one for each CPU that this process may use; more for a bucket, as they wait for it."""
    threads_per_cpu = _PER_CPU_OF_BUCKETS if "://" in config.root else 1
    return config.num_threads or threads_per_cpu * len(os.sched_getaffinity(0))


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """A new array of bytes, which JAX need not copy to give it to a CPU. Nobody may write into it after that."""
    num_bytes = math.prod(shape)
    buffer = np.empty(num_bytes + _ALIGNMENT_BYTES, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT_BYTES
    return buffer[start : start + num_bytes].reshape(shape)


def load_images(config: DataConfig) -> Dataset:
    """The data set in the folder `config.name` of `config.root`, in any form that `open_folder` knows.

    Raises:
        ConfigError: it has no such splits, or something is missing.
        FileNotFoundError: there is no such folder.
    """
    contents = open_folder(f"{config.root}/{config.name}")
    num_classes = len(contents.class_names)
    train, held = _train_and_holdout(contents, config)
    name = config.eval_split or (HOLDOUT if config.holdout else _evaluated(contents))
    if name == HOLDOUT:
        if not config.holdout:
            raise ConfigError(
                "data.eval_split is 'holdout' and data.holdout is 0: set it to a share of the training set"
            )
        test = held
    elif name == config.train_split:
        test = replace(train, name="evaluation")
    else:
        source = contents.split(name, "data.eval_split")
        test = ImageSplit("evaluation", source, np.arange(len(source)), config)
    check_holdout(config, len(train) + len(held), len(train), len(test))
    if config.eval_labels:
        test.answers = read_label_file(local_path("data.eval_labels", config.eval_labels), num_classes)
    num_answers = 0 if test.answers is None else test.answers.num_answers
    statistics = IMAGENET_MEAN, IMAGENET_STD
    return Dataset(config.name, train, test, num_classes, *statistics, num_answers, contents.class_names)


def _train_and_holdout(contents: Contents, config: DataConfig) -> tuple[ImageSplit, ImageSplit]:
    """Examples are drawn, labels are replaced, and then a part is held out, as in `parts_of`."""
    source = contents.split(config.train_split, "data.train_split")
    given_ids = drawn(len(source), config)
    if config.label_noise:
        num_classes = len(contents.class_names)
        shift_N = np.zeros(len(source), np.int32)
        shift_N[given_ids] = label_shifts(len(given_ids), num_classes, config)
        source = NoisyLabels(source, shift_N, num_classes)
    train_part, holdout_part = held_out(len(given_ids), config.holdout)
    return (
        ImageSplit("training", source, given_ids[train_part], config),
        ImageSplit("evaluation", source, given_ids[holdout_part], config),
    )


def _evaluated(contents: Contents) -> str:
    for name in ("validation", "test"):
        if name in contents.splits:
            return name
    raise ConfigError(
        f"the data set has only {', '.join(contents.splits)}: hold a part out of training with data.holdout, or name a "
        "split with data.eval_split"
    )
