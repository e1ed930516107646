"""Encoded images to pixels: random crops for training, centre crops for evaluation, and what is refused.

JPEGs are decoded by libjpeg-turbo (simplejpeg), and all else by Pillow. Pixels stay as they are stored: the orientation
in EXIF is ignored, as by TensorFlow, torchvision and timm, on which published accuracies rest. Nothing here is drawn at
random: the same bytes, sizes and draws give the same pixels.

H rows, W columns, D draws.
"""

import io
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from gnp_scale.data.crops import Box, random_box
from gnp_scale.data.restarts import cut

# The threads here are those of the pipeline.
cv2.setNumThreads(0)

MAX_PIXELS = 80_000_000
"""Of an image; the largest of ImageNet has 61 million. More are refused before memory is taken."""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

_HARMLESS = "extraneous bytes before marker"
"""In a warning about files that some programs write. All decoders read them."""

type Filter = Literal["bilinear", "bicubic"]


class ImageError(ValueError):
    """Bytes that are not an image of a form and size that can be decoded; the message says why."""


def random_crop(data: bytes, draw_D: np.ndarray, min_area: float, out_HxWx3: np.ndarray) -> None:
    """Decodes a random crop of an image, and resizes it into `out` (uint8), by bilinear interpolation.

    The crop is that of `random_box`. A crop of at least twice the size of `out` is decoded at a half, a quarter or an
    eighth of its size. JPEGs are decoded with the fast DCT and upsampling, which change values by a few levels. Of
    JPEGs with an index of restart markers only the part around the crop is decoded.

    Raises:
        ImageError: the bytes cannot be decoded.
    """
    height, width, is_plain_jpeg = _header(data)
    box = random_box(height, width, draw_D, min_area)
    if is_plain_jpeg:
        pixels, box = _decoded_around(data, height, width, box, out_HxWx3.shape[:2])
    else:
        pixels = _decoded_by_pillow(data)
    crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    is_reduced = min(box.height / out_HxWx3.shape[0], box.width / out_HxWx3.shape[1]) >= 2
    interpolation = cv2.INTER_AREA if is_reduced else cv2.INTER_LINEAR
    cv2.resize(crop, out_HxWx3.shape[1::-1], dst=out_HxWx3, interpolation=interpolation)


def centre_crop(data: bytes, crop_share: float, resample: Filter, out_HxWx3: np.ndarray) -> None:
    """Decodes an image, resizes its shorter side to the size of `out` / `crop_share`, and takes the centre into `out`.

    This is the evaluation of torchvision and timm. Pillow resizes, with a filter that widens with the reduction
    (antialiased).

    Raises:
        ImageError: the bytes cannot be decoded.
    """
    height, width, is_plain_jpeg = _header(data)
    pixels = _decoded_jpeg(data, fast=False) if is_plain_jpeg else _decoded_by_pillow(data)
    size = out_HxWx3.shape[0]
    shorter = int(size / crop_share)
    # The longer side is rounded down, as in torchvision.
    longer = int(shorter * max(height, width) / min(height, width))
    new_height, new_width = (shorter, longer) if height <= width else (longer, shorter)
    if new_height * new_width > MAX_PIXELS:
        raise ImageError(f"it has {height} x {width} pixels, and would have {new_height} x {new_width} when resized")
    resized = Image.fromarray(pixels).resize((new_width, new_height), _FILTERS[resample])
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    out_HxWx3[:] = np.asarray(resized)[top : top + size, left : left + size]


def pixels_of(data: bytes) -> np.ndarray:
    """All pixels of an image (uint8 H x W x 3).

    Raises:
        ImageError: the bytes cannot be decoded.
    """
    *_, is_plain_jpeg = _header(data)
    return _decoded_jpeg(data, fast=False) if is_plain_jpeg else _decoded_by_pillow(data)


def _header(data: bytes | bytearray) -> tuple[int, int, bool]:
    """Height, width, and whether libjpeg-turbo converts it to RGB."""
    try:
        *size, colours, _ = simplejpeg.decode_jpeg_header(data)
        height, width, is_plain_jpeg = int(size[0]), int(size[1]), colours in ("RGB", "YCbCr", "Gray")
    # A KeyError is an unknown colour space, also of a header that is cut.
    except (ValueError, KeyError):
        (width, height), is_plain_jpeg = _opened_by_pillow(data).size, False
    if height * width > MAX_PIXELS:
        raise ImageError(f"it has {height} x {width} pixels, more than {MAX_PIXELS}")
    return height, width, is_plain_jpeg


def _decoded_jpeg(data: bytes | bytearray, fast: bool, at_least: tuple[int, int] = (0, 0)) -> np.ndarray:
    options: Any = {
        "fastdct": fast,
        "fastupsample": fast,
        "min_height": at_least[0],
        "min_width": at_least[1],
    }
    try:
        return simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        if _HARMLESS not in str(error):
            raise ImageError(f"libjpeg-turbo: {error}") from error
        return simplejpeg.decode_jpeg(data, **options, strict=False)


def _opened_by_pillow(data: bytes | bytearray) -> Any:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(f"it is none of {', '.join(_FORMATS)}") from error
    # What Pillow raises for damaged files depends on the format and is not documented.
    except Exception as error:
        raise ImageError(f"{type(error).__name__}: {error}") from error


def _decoded_by_pillow(data: bytes) -> np.ndarray:
    image = _opened_by_pillow(data)
    try:
        image.load()
        if image.mode.startswith("I"):
            # 16 bits of grey: Pillow would clip them to 255.
            grey = np.asarray(image).astype(np.int64) >> 8
            return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise ImageError(f"{type(error).__name__}: {error}") from error


def _decoded_around(
    data: bytes, height: int, width: int, box: Box, out_size: tuple[int, int]
) -> tuple[np.ndarray, Box]:
    """Pixels of a JPEG that contain a box, at a part of its size if `out_size` allows that, and the box in them."""
    scale = _scale(box, out_size)
    scaled = _scaled(box, -(-height // scale) / height, -(-width // scale) / width)
    # The pixels of which those of the scaled box are made.
    top, left = scaled.top * scale, scaled.left * scale
    needed = Box(top, left, min(height - top, scaled.height * scale), min(width - left, scaled.width * scale))
    part, place = cut(data, needed)
    at_least = (0, 0)
    if scale > 1:
        part_height, part_width, _ = _header(part)
        at_least = -(-part_height // scale), -(-part_width // scale)
    pixels = _decoded_jpeg(part, fast=True, at_least=at_least)
    box = Box(place.top // scale, place.left // scale, scaled.height, scaled.width)
    if pixels.shape[0] < box.top + box.height or pixels.shape[1] < box.left + box.width:
        raise ImageError("the index of its restart markers is wrong")
    return pixels, box


def _scale(box: Box, out_size: tuple[int, int]) -> int:
    """The largest of 1, 2, 4 and 8 by which a box can be reduced and is no smaller than `out_size`."""
    if min(box.height, box.width) < 8:
        # Several scales would give the same number of pixels, and libjpeg-turbo would take another.
        return 1
    reduction = min(box.height / out_size[0], box.width / out_size[1])
    return next((scale for scale in (8, 4, 2) if scale <= reduction), 1)


def _scaled(box: Box, by_height: float, by_width: float) -> Box:
    """The box in an image that was decoded at a part of its size, to the nearest pixel."""
    top, left = round(box.top * by_height), round(box.left * by_width)
    bottom, right = round((box.top + box.height) * by_height), round((box.left + box.width) * by_width)
    return Box(top, left, max(1, bottom - top), max(1, right - left))
