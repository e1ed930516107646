"""Restart markers: the part of a JPEG around a crop is decoded alone, and no pixel changes."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import jpeg, photograph
from PIL import Image

from gnp_scale.config import ConfigError
from gnp_scale.data import decode, restarts
from gnp_scale.data.containers.open_folder import open_folder
from gnp_scale.data.crops import Box, crop_draws
from gnp_scale.data.encode import Encoding
from gnp_scale.data.manifest import Manifest
from gnp_scale.data.prepare import prepare
from gnp_scale.data.restarts import cut, with_index, with_restart_markers
from gnp_scale.data.verify import verify

needs_jpegtran = pytest.mark.skipif(
    shutil.which(restarts.JPEGTRAN) is None, reason="needs jpegtran: apt-get install libjpeg-turbo-progs"
)
BLOCK = {"4:4:4": (8, 8), "4:2:2": (8, 16), "4:2:0": (16, 16), "L": (8, 8)}
"""Height and width of a block, by subsampling, or for a grey image."""


def encoded(height: int, width: int, form: str, **options) -> bytes:
    pixels = photograph(height, width)
    if form == "L":
        return jpeg(pixels[..., 0], quality=90, **options)
    return jpeg(pixels, quality=90, subsampling=form, **options)


def marked(height: int, width: int, form: str, num_segments: int) -> bytes:
    """A JPEG that Pillow wrote with restart markers, with an index of them."""
    interval = -(-width // BLOCK[form][1]) // num_segments
    indexed = with_index(encoded(height, width, form, restart_marker_blocks=interval), num_segments)
    assert indexed is not None
    return indexed


def fast(data: bytes | bytearray) -> np.ndarray:
    return simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True)


def random_crop(data: bytes, draw_D: np.ndarray, size: int, min_area: float) -> np.ndarray:
    out_HxWx3 = np.zeros((size, size, 3), np.uint8)
    decode.random_crop(data, draw_D, min_area, out_HxWx3)
    return out_HxWx3


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_cut_has_the_pixels_of_the_whole_picture(data: st.DataObject):
    form = data.draw(st.sampled_from(list(BLOCK)))
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    num_columns = -(-width // BLOCK[form][1])
    num_segments = data.draw(st.sampled_from([n for n in range(1, num_columns + 1) if num_columns % n == 0]))
    picture = marked(height, width, form, num_segments)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = Box(top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    part, place = cut(picture, box)
    found, whole = fast(part), fast(picture)
    np.testing.assert_array_equal(
        found[place.top : place.top + box.height, place.left : place.left + box.width],
        whole[box.top : box.top + box.height, box.left : box.left + box.width],
    )
    # Little more than the box: less than a block above and below, less than a segment on each side.
    assert found.shape[0] < box.height + 2 * BLOCK[form][0]
    assert found.shape[1] < box.width + 2 * BLOCK[form][1] * num_columns / num_segments


@pytest.mark.parametrize("form", BLOCK)
@pytest.mark.parametrize("size", [1, 3, 16, 32])
def test_random_crops_are_those_of_the_same_picture_without_markers(form: str, size: int):
    """At all scales at which libjpeg-turbo decodes: crops of 200 pixels for images of 1 to 32."""
    plain, with_markers = encoded(211, 320, form), marked(211, 320, form, 10)
    for draw_D in crop_draws(size, 0, np.arange(30)):
        expected = random_crop(plain, draw_D, size, 0.05)
        np.testing.assert_array_equal(random_crop(with_markers, draw_D, size, 0.05), expected)


def test_evaluation_does_not_see_the_markers():
    picture, plain = marked(211, 320, "4:2:0", 5), encoded(211, 320, "4:2:0")
    np.testing.assert_array_equal(decode.pixels_of(picture), decode.pixels_of(plain))


def test_less_is_decoded():
    """What the markers are for."""
    picture = marked(256, 256, "4:4:4", 16)
    part, _ = cut(picture, Box(100, 100, 64, 64))
    assert len(part) < len(picture) / 8


def test_bytes_without_an_index_are_returned_as_they_are():
    box = Box(0, 0, 8, 8)
    for data in (b"", b"\xff\xd8", b"text", jpeg(photograph(60, 80)), jpeg(photograph(60, 80), restart_marker_rows=1)):
        assert cut(data, box) == (data, box)


def test_a_damaged_index_is_an_error_or_is_not_used():
    """Each byte of the header and the index is changed: the crop is right, or an `ImageError`, and nothing else."""
    picture, draw_D = marked(60, 80, "4:2:0", 5), crop_draws(0, 0, np.arange(1))[0]
    end = picture.index(b"\xff\xda")
    num_refused = 0
    for at in range(2, end):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(picture)
            damaged[at] ^= change
            try:
                assert random_crop(bytes(damaged), draw_D, 32, 0.3).shape == (32, 32, 3)
            except decode.ImageError:
                num_refused += 1
    assert 0 < num_refused < 3 * (end - 2)


def test_markers_that_do_not_divide_the_rows_get_no_index():
    picture = jpeg(photograph(60, 80), quality=90, subsampling="4:4:4", restart_marker_blocks=4)
    assert with_index(picture, 5) is None
    assert with_index(picture, 3) is None
    assert with_index(jpeg(photograph(60, 80)), 5) is None
    assert with_index(jpeg(photograph(60, 80), progressive=True), 1) is None
    assert with_index(b"text", 1) is None


JPEGS = {
    "4:4:4": jpeg(photograph(123, 500), quality=95, subsampling="4:4:4"),
    "4:2:0": jpeg(photograph(375, 333), quality=90, subsampling="4:2:0"),
    "progressive": jpeg(photograph(200, 300), progressive=True, subsampling="4:2:2"),
    "grey": jpeg(photograph(99, 64)[..., 0]),
    "with metadata": jpeg(photograph(64, 99), exif=b"Exif\0\0" + b"x" * 999, icc_profile=b"y" * 999),
}


@needs_jpegtran
@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS)
def test_jpegtran_changes_no_pixel(data: bytes):
    picture = with_restart_markers(data)
    assert picture != data
    for read in (fast, decode.pixels_of):
        np.testing.assert_array_equal(read(picture), read(data))
    for draw_D in crop_draws(0, 0, np.arange(20)):
        np.testing.assert_array_equal(random_crop(picture, draw_D, 32, 0.08), random_crop(data, draw_D, 32, 0.08))
    assert len(picture) < 1.1 * len(data) + 700
    assert with_restart_markers(picture) == picture


@needs_jpegtran
def test_what_jpegtran_does_not_read_stays_as_it_is():
    whole = jpeg(photograph(60, 80))
    for data in (b"", b"text", whole[:-200], whole[:300]):
        assert with_restart_markers(data) == data


def write_photographs(root: Path) -> Path:
    """Six photographs of two classes, one of them a PNG."""
    for number in range(6):
        folder = root / "train" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(jpeg(photograph(100, 160, number)))
    png = io.BytesIO()
    Image.fromarray(photograph(100, 160, 0)).save(png, "PNG")
    (root / "train" / "cat" / "0.jpg").write_bytes(png.getvalue())
    return root


@needs_jpegtran
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("form", ["arrayrecord", "webdataset"])
def test_a_prepared_set_has_the_markers_and_the_same_images(form: str, tmp_path: Path):
    source = write_photographs(tmp_path / "photographs")
    plain, with_markers = tmp_path / "plain", tmp_path / "markers"
    prepare(source, plain, 1 << 14, 2, form)
    prepare(source, with_markers, 1 << 14, 2, form, Encoding(restart_markers=True))
    records = [open_folder(str(folder)).splits["train"].read(range(6)) for folder in (plain, with_markers)]
    for before, after in zip(*records, strict=True):
        assert (after.label, after.name, after.problem) == (before.label, before.name, "")
        np.testing.assert_array_equal(decode.pixels_of(after.data), decode.pixels_of(before.data))
        assert (cut(after.data, Box(0, 0, 8, 8))[0] == after.data) == before.data.startswith(b"\x89PNG")
    assert verify(with_markers, 2, decodes=True) == (6, [])
    assert Manifest.read(with_markers).encoding.restart_markers
    # The same command again has nothing to do; the other one is refused.
    prepare(source, with_markers, 1 << 14, 2, form, Encoding(restart_markers=True))
    with pytest.raises(ConfigError, match="other options"):
        prepare(source, with_markers, 1 << 14, 2, form)


def test_without_jpegtran_nothing_is_written(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    source = write_photographs(tmp_path / "photographs")
    with pytest.raises(ConfigError, match="libjpeg-turbo-progs"):
        prepare(source, tmp_path / "out", 1 << 14, 2, encoding=Encoding(restart_markers=True))
    assert not (tmp_path / "out").exists()
