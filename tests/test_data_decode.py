"""Decoding: equal to Pillow's, right for every kind of JPEG and PNG, and an error in one line for everything else."""

import contextlib
import io
import itertools
import struct

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import jpeg, photograph
from PIL import Image

from gnp_scale.data import decode
from gnp_scale.data.crops import NUM_DRAWS, crop_draws, random_box
from gnp_scale.data.decode import ImageError, centre_crop, pixels_of, random_crop
from gnp_scale.data.restarts import with_index

SIZES = [(60, 80), (80, 60), (64, 64), (9, 200), (200, 9), (1, 1), (1, 50), (500, 375)]


def centre(data: bytes, size: int = 32, share: float = 0.875, resample: str = "bicubic") -> np.ndarray:
    out = np.zeros((size, size, 3), np.uint8)
    centre_crop(data, share, resample, out)
    return out


def cropped(data: bytes, draw_D: np.ndarray, size: int = 32, min_area: float = 0.08) -> np.ndarray:
    out = np.zeros((size, size, 3), np.uint8)
    random_crop(data, draw_D, min_area, out)
    return out


def by_torchvision(image: Image.Image, size: int, resize: int, resample: Image.Resampling) -> np.ndarray:
    """`Resize(resize)` and `CenterCrop(size)` of torchvision 0.28, written with Pillow."""
    width, height = image.size
    shorter, longer = resize, int(resize * max(width, height) / min(width, height))
    image = image.resize((shorter, longer) if width <= height else (longer, shorter), resample)
    width, height = image.size
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_evaluation_is_that_of_torchvision_to_the_bit(size: tuple[int, int], resample: str):
    data = jpeg(photograph(*size), quality=90, subsampling="4:2:0")
    image = Image.open(io.BytesIO(data)).convert("RGB")
    expected = by_torchvision(image, 32, 36, getattr(Image.Resampling, resample.upper()))
    np.testing.assert_array_equal(centre(data, share=32 / 36, resample=resample), expected)


def test_evaluation_without_an_antialiased_filter_would_differ():
    """What the filter is for: stripes of one pixel, which become grey."""
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(centre(jpeg(stripes, quality=95), share=1.0).astype(int)) < 16


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(60, 80), (500, 375), (701, 1000)], ids=str)
def test_a_random_crop_is_near_to_one_by_pillow(size: tuple[int, int], subsampling: str):
    """Decoding at a part of the size, the fast DCT and bilinear resizing change a smooth picture little."""
    data = jpeg(photograph(*size), quality=92, subsampling=subsampling)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    for draw_D in crop_draws(0, 0, np.arange(6)):
        box = random_box(*size, draw_D, 0.3)
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR, box=corners))
        difference = np.abs(cropped(data, draw_D, min_area=0.3).astype(int) - expected)
        assert difference.mean() < 4
        assert difference.max() < 20


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    min_area=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_crop_lies_in_its_image_and_has_a_stated_area(height: int, width: int, min_area: float, seed: int):
    (draw_D,) = crop_draws(seed, 3, np.arange(1))
    top, left, crop_height, crop_width = random_box(height, width, draw_D, min_area)
    assert 0 <= top <= top + crop_height <= height
    assert 0 <= left <= left + crop_width <= width
    assert min(crop_height, crop_width) >= 1


def test_crops_have_the_distribution_of_their_definition():
    """Areas are uniform and logarithms of ratios too, where all crops fit: mean and deviation within 4 sigma."""
    boxes = [random_box(4000, 4000, draw_D, 0.1) for draw_D in crop_draws(1, 0, np.arange(4000)) * [[0.5, 1.0] * 11]]
    areas = np.array([box.height * box.width for box in boxes]) / 4000**2
    ratios = np.log([box.width / box.height for box in boxes])
    # Half of each draw of an area: uniform in [0.1, 0.55].
    assert abs(areas.mean() - 0.325) < 4 * 0.45 / np.sqrt(12 * 4000)
    assert abs(areas.std() - 0.45 / np.sqrt(12)) < 0.005
    assert abs(ratios.mean()) < 4 * 2 * np.log(4 / 3) / np.sqrt(12 * 4000)
    assert abs(ratios.max() - np.log(4 / 3)) < 0.01
    places = np.array([box.top / (4000 - box.height) for box in boxes])
    assert abs(places.mean() - 0.25) < 0.01


def test_draws_depend_on_seed_and_step_and_on_nothing_else():
    first = crop_draws(3, 5, np.arange(8))
    assert first.shape == (8, NUM_DRAWS)
    np.testing.assert_array_equal(first, crop_draws(3, 5, np.arange(8)))
    # A larger batch has the same first rows, so the draws belong to a row.
    np.testing.assert_array_equal(first, crop_draws(3, 5, np.arange(64))[:8])
    others = [crop_draws(*key, np.arange(8)) for key in itertools.product((3, 4, 2**32 - 1), (4, 6, 2**31))]
    assert len({draws.tobytes() for draws in [first, *others]}) == 1 + len(others)


@pytest.mark.parametrize("row_B", [range(5), range(3, 9), range(64, 71), [1, 2, 3, 8, 9, 31, 60, 61], [0]], ids=str)
def test_each_process_draws_its_own_rows_of_one_table(row_B):
    """The numbers are those of one generator for all rows, in their order."""
    bits = np.random.Philox(key=[7, 1], counter=[0, 0, 0, 11])
    whole = np.random.Generator(bits).random((80, NUM_DRAWS))
    np.testing.assert_array_equal(crop_draws(7, 11, np.array(row_B)), whole[row_B])


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


PHOTOGRAPH = photograph(60, 80)
IMAGE = Image.fromarray(PHOTOGRAPH)
SIXTEEN_BITS = Image.fromarray(np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) * 13)
ROTATED = Image.Exif()
ROTATED[0x0112] = 6
RESTARTS = with_index(jpeg(PHOTOGRAPH, subsampling="4:2:0", restart_marker_blocks=1), 5)
assert RESTARTS is not None
READABLE = {
    "a progressive JPEG": (jpeg(PHOTOGRAPH, progressive=True), None),
    "a grey JPEG": (saved(IMAGE.convert("L"), "JPEG"), None),
    "a CMYK JPEG": (saved(IMAGE.convert("CMYK"), "JPEG"), None),
    "a JPEG with restart markers": (RESTARTS, None),
    "a JPEG with junk after it": (jpeg(PHOTOGRAPH) + b"junk" * 100, None),
    "a JPEG with junk before its end": (jpeg(PHOTOGRAPH)[:-2] + b"\x01\x02" * 9 + b"\xff\xd9", None),
    "a JPEG that EXIF rotates": (jpeg(PHOTOGRAPH, exif=ROTATED), None),
    "a PNG": (saved(IMAGE, "PNG"), PHOTOGRAPH),
    "a PNG with a palette": (saved(IMAGE.convert("P"), "PNG"), np.asarray(IMAGE.convert("P").convert("RGB"))),
    "a PNG with transparency": (saved(IMAGE.convert("RGBA"), "PNG"), PHOTOGRAPH),
    "a PNG of 1 bit": (saved(IMAGE.convert("1"), "PNG"), np.asarray(IMAGE.convert("1").convert("RGB"))),
    "a PNG of 16 bits": (
        saved(SIXTEEN_BITS, "PNG"),
        np.repeat((np.asarray(SIXTEEN_BITS) >> 8).astype(np.uint8)[..., None], 3, 2),
    ),
    "a lossless WebP": (saved(IMAGE, "WEBP", lossless=True), PHOTOGRAPH),
    "a BMP": (saved(IMAGE, "BMP"), PHOTOGRAPH),
    "a GIF": (saved(IMAGE.convert("P"), "GIF"), np.asarray(IMAGE.convert("P").convert("RGB"))),
}


@pytest.mark.parametrize(("data", "expected"), READABLE.values(), ids=READABLE)
def test_what_can_be_read_is_right(data: bytes, expected: np.ndarray | None):
    if expected is None:
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels_of(data), expected)
    assert cropped(data, crop_draws(0, 0, np.arange(1))[0]).any()
    assert centre(data).any()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header tells of another size."""
    content = bytearray(saved(IMAGE, "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    return bytes(content)


def jpeg_of_size(height: int, width: int) -> bytes:
    content = bytearray(jpeg(PHOTOGRAPH))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


UNREADABLE = {
    "nothing": b"",
    "text": b"<html>404</html>",
    "half a JPEG": jpeg(PHOTOGRAPH)[: len(jpeg(PHOTOGRAPH)) // 2],
    "a JPEG without its end": jpeg(PHOTOGRAPH)[:-200],
    "half a PNG": saved(IMAGE, "PNG")[:3000],
    "a header of a JPEG": jpeg(PHOTOGRAPH)[:300],
    "a JPEG bomb": jpeg_of_size(65_500, 65_500),
    "a PNG bomb": png_of_size(65_500, 65_500),
    "a JPEG of no size": jpeg_of_size(0, 0),
    "a TIFF": saved(IMAGE, "TIFF"),
    "an image so long that its resized form is too large": saved(Image.new("L", (70_000, 1)), "PNG"),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_an_error_of_one_line(data: bytes):
    with pytest.raises(ImageError) as error:
        centre(data, size=224)
    assert str(error.value)
    assert "\n" not in str(error.value)


def mutated(seed: int) -> bytes:
    """An image of which some bytes are changed, cut, repeated or exchanged with another."""
    random = np.random.default_rng(seed)
    originals = [data for data, _ in READABLE.values()]
    data = bytearray(originals[random.integers(len(originals))])
    for _ in range(random.integers(1, 6)):
        start = int(random.integers(len(data) or 1))
        length = int(random.choice([1, 1, 1, 2, 8, 100]))
        match random.integers(4):
            case 0:
                data[start : start + length] = random.bytes(length)
            case 1:
                del data[start : start + length]
            case 2:
                data[start:start] = data[start : start + length]
            case 3:
                del data[start:]
    return bytes(data)


def decode_all(seeds: range) -> int:
    """Decodes mutated images; returns how many could be."""
    draw_D, num_decoded = crop_draws(0, 0, np.arange(1))[0], 0
    for seed in seeds:
        data = mutated(seed)
        for read in (lambda data: cropped(data, draw_D), centre):
            with contextlib.suppress(ImageError):
                assert read(data).shape == (32, 32, 3)
                num_decoded += 1
    return num_decoded


def test_mutated_images_are_decoded_or_refused():
    assert 0 < decode_all(range(300)) < 600


@pytest.mark.long
def test_no_bytes_crash_or_hang_the_decoders():
    """Ten thousand mutated images, each decoded in both ways; the time limit of a test is the limit of a hang."""
    assert 0 < decode_all(range(10_000)) < 20_000


def test_pixels_do_not_depend_on_threads():
    assert decode.cv2.getNumThreads() == 1
    assert simplejpeg.decode_jpeg_header(jpeg(PHOTOGRAPH))[:2] == PHOTOGRAPH.shape[:2]
