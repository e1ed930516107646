"""TensorBoard event files of a run: scalars, the configuration, images, guesses, and the charts of the penalty."""

import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from gnp_scale import recipe
from gnp_scale.config import Config
from gnp_scale.data.dataset import Dataset
from gnp_scale.monitoring.confusion import Guesses, tables
from gnp_scale.monitoring.pictures import matrix_picture, worst_picture
from gnp_scale.run.files import RecordFile
from gnp_scale.run.layout import EVENTS_PATTERN

CHARTS = {
    "loss": {
        "loss at the parameters": "train/loss",
        "loss at the perturbed parameters": "train/loss_perturbed",
    },
    "gradients": {
        "gradient norm at the parameters": "gnp/grad_norm",
        "gradient norm at the perturbed parameters": "gnp/grad_norm_perturbed",
        "norm of their blend, for the update": "gnp/update_grad_norm",
        "cosine of the two gradients": "gnp/cosine",
        "curvature along the gradient": "gnp/curvature",
    },
    "strength of the penalty": {
        "radius r": "gnp/r",
        "share alpha of the perturbed gradient": "gnp/alpha",
        "weight lambda of the gradient norm": "gnp/lambda",
    },
}
"""The groups of the CUSTOM SCALARS tab, the titles of their charts, and the metric of each.

A chart has one metric: TensorBoard draws those of one run in one colour. Each run has its own, so runs can be compared.
"""
_SMALLEST_SIDE = 128  # pixels at which a single image can be recognised on a screen
_MAX_IMAGES = 16
_ACCURACY_BINS = np.linspace(0, 1, 21)


class TensorBoard:
    """Writes event files into `run_dir`.

    After a restart at `start_step`, TensorBoard replaces the points of later steps by the new ones. (Its fast loader
    does so for each name: old points of `eval/*` stay visible until the next evaluation.)
    """

    def __init__(self, run_dir: Path, start_step: int) -> None:
        # tensorboardX only builds the events: its writer thread ends at the first disk error, and then blocks every
        # write.
        self._file = RecordFile(_new_file(run_dir))
        self._add(0, Event(file_version="brain.Event:2"))
        self._add(start_step + 1, Event(session_log=SessionLog(status=SessionLog.START)))
        charts = {
            group: {title: ["Multiline", [f"^{tag}$"]] for title, tag in titles.items()}
            for group, titles in CHARTS.items()
        }
        self._add_values(0, summary.custom_scalars(charts))

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one point to the chart of each name."""
        self._add_values(step, *(summary.scalar(name, value) for name, value in scalars.items()))

    def config(self, config: Config) -> None:
        """Shows the configuration in the TEXT tab, and in HPARAMS beside the metrics of the run.

        There is no definition of the experiment: TensorBoard would take that of one run for all, with the values and
        types of that run. Without it, TensorBoard finds itself which values differ between runs, and shows those first.
        """
        values = {
            key: str(value) if isinstance(value, tuple | None) else value
            for key, value in recipe.flatten(config).items()
        }
        _, session, _ = summary.hparams(values, {})
        text = summary.text("config", _as_code(recipe.to_json(config)))
        self._add_values(0, text, session)

    def environment(self, step: int, facts: Mapping[str, Any]) -> None:
        """Shows in the TEXT tab where a start of the run, from `step` on, computes: its versions, devices and so on."""
        text = json.dumps({"host": socket.gethostname(), **facts}, indent=2)
        self._add_values(step, summary.text("environment", _as_code(text)))

    def images(
        self, step: int, name: str, image_BxHxWxC: np.ndarray, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Shows the first images of a normalised batch, `(pixel / 255 - mean) / std` with a value for each channel."""
        grid_BxHxWxC = visible(image_BxHxWxC[:_MAX_IMAGES], mean, std)
        self._add_values(step, summary.image(name, grid_BxHxWxC, dataformats="NHWC"))

    def guesses(self, step: int, guesses: Guesses, dataset: Dataset) -> None:
        """Shows which classes are taken for which, the accuracy of each class, and the images guessed worst."""
        right_K, all_K = guesses.per_class()
        accuracy = (right_K / np.maximum(all_K, 1))[all_K > 0]
        pictures = {
            "eval/confusion_matrix": matrix_picture(guesses, dataset.class_name),
            "eval/worst_images": worst_picture(guesses, dataset),
        }
        self._add_values(
            step,
            summary.text("eval/confusions", tables(guesses, dataset.class_name)),
            summary.histogram("eval/class_accuracy", accuracy, _ACCURACY_BINS),
            *(summary.image(name, x, dataformats="HWC") for name, x in pictures.items() if x is not None),
        )

    def sync(self) -> None:
        """Waits until the disk has the written events."""
        self._file.sync()

    def close(self) -> None:
        """Writes the remaining events."""
        self._file.close()

    def _add_values(self, step: int, *summaries: Summary) -> None:
        self._add(step, Event(summary=Summary(value=[value for each in summaries for value in each.value])))

    def _add(self, step: int, event: Event) -> None:
        event.step, event.wall_time = step, time.time()
        self._file.append(_encode(event))


def _as_code(text: str) -> str:
    return f"```json\n{text}\n```"


def _encode(event: Event) -> bytes:
    """The event as a TFRecord: its length and its bytes, each with a checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def _new_file(run_dir: Path) -> Path:
    """A name that sorts after all existing event files: TensorBoard reads them in the order of their names.

    A name begins with the second in which the file was made, but a clock may be set back.
    """
    seconds = [path.name.split(".")[3] for path in run_dir.glob(EVENTS_PATTERN)]
    newest = max((int(text) for text in seconds if text.isdecimal()), default=0)
    return run_dir / f"events.out.tfevents.{max(int(time.time()), newest + 1):010}.{socket.gethostname()}"


def visible(image_BxHxWxC: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised images as uint8 pixels, enlarged by an integer factor (nearest neighbour) if they are small."""
    channel_shape = (1, 1, 1, -1)
    pixel_BxHxWxC = image_BxHxWxC * np.reshape(std, channel_shape) + np.reshape(mean, channel_shape)
    pixel_BxHxWxC = np.rint(255 * np.clip(pixel_BxHxWxC, 0, 1)).astype(np.uint8)
    factor = -(-_SMALLEST_SIDE // min(image_BxHxWxC.shape[1:3]))
    return pixel_BxHxWxC.repeat(factor, axis=1).repeat(factor, axis=2)
