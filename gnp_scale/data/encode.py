"""How `gnp-scale data prepare` changes images before it writes them; by default it does not."""

import shutil
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from gnp_scale.config import check
from gnp_scale.data.decode import ImageError, pixels_of
from gnp_scale.data.restarts import JPEGTRAN, with_restart_markers

_QUALITY = 95


class Encoding(NamedTuple):
    """What is changed; an image that cannot be decoded stays as it is."""

    shorter_side: int | None = None
    """Images whose shorter side has more pixels are resized to it."""
    restart_markers: bool = False
    """Whether JPEGs get restart markers, unless these would change their pixels."""

    def check(self) -> None:
        """Raises ConfigError: there is no program that adds restart markers."""
        check(
            not self.restart_markers or shutil.which(JPEGTRAN) is not None,
            f"--restart-markers needs {JPEGTRAN}, which is not on this machine: install it (Debian: "
            "libjpeg-turbo-progs)",
        )

    def named(self) -> dict[str, Any]:
        """Its values by name, without a size that is not given."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def resized(self, data: bytes) -> bytes:
        """The image as a JPEG of that shorter side, if its own is longer; Pillow's antialiased bicubic filter."""
        if self.shorter_side is None:
            return data
        try:
            pixels_HxWx3 = pixels_of(data)
        except ImageError:
            return data
        height, width, _ = pixels_HxWx3.shape
        scale = self.shorter_side / min(height, width)
        if scale >= 1:
            return data
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        smaller = Image.fromarray(pixels_HxWx3).resize(size, Image.Resampling.BICUBIC)
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(smaller), quality=_QUALITY, colorsubsampling="444", fastdct=False
        )

    def of(self, data: bytes) -> bytes:
        """The image as it is written."""
        data = self.resized(data)
        return _marked(data) if self.restart_markers else data


UNCHANGED = Encoding()


def _marked(data: bytes) -> bytes:
    """An image with restart markers, or as it is if they would change its pixels, or if it cannot be decoded."""
    marked = with_restart_markers(data)
    if marked is data:
        return data
    try:
        return marked if np.array_equal(pixels_of(marked), pixels_of(data)) else data
    except ImageError:
        return data
