"""`gnp-scale data prepare --shorter-side` makes large images smaller, and leaves all others as they are."""

from pathlib import Path

import numpy as np
import pytest
from image_sets import jpeg, photograph, png
from PIL import Image

from gnp_scale.cli import main
from gnp_scale.config import ConfigError
from gnp_scale.data.containers.open_folder import open_folder
from gnp_scale.data.decode import pixels_of
from gnp_scale.data.encode import UNCHANGED, Encoding
from gnp_scale.data.manifest import Manifest
from gnp_scale.data.prepare import prepare
from gnp_scale.data.verify import verify

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 160), (40, 64)), ((160, 100), (64, 40)), ((41, 41), (40, 40)), ((500, 45), (444, 40))]
)
def test_the_shorter_side_is_as_asked_and_the_picture_the_same(size, expected):
    """As Pillow resizes it, but for the loss of a JPEG."""
    data = jpeg(photograph(*size), quality=100)
    found = pixels_of(Encoding(40).resized(data))
    assert found.shape == (*expected, 3)
    right = Image.fromarray(pixels_of(data)).resize(expected[::-1], Image.Resampling.BICUBIC)
    assert np.abs(found.astype(float) - np.asarray(right, float)).mean() < 2


def test_an_image_of_one_row_keeps_a_row():
    assert pixels_of(Encoding(1).resized(jpeg(photograph(2, 900)))).shape == (1, 450, 3)


@pytest.mark.parametrize(
    "data", [jpeg(photograph(40, 90)), png(3), b"no image", b""], ids=["as small", "png", "text", "nothing"]
)
def test_what_is_small_or_cannot_be_decoded_stays_as_it_is(data):
    assert Encoding(40).of(data) is data
    assert UNCHANGED.of(data) is data


@pytest.mark.parametrize("form", ["arrayrecord", "webdataset"])
def test_a_prepared_set_has_smaller_images_and_is_whole(form: str, tmp_path: Path):
    source, out = tmp_path / "source", tmp_path / "out"
    for number in range(6):
        folder = source / "train" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        height = 20 if number == 5 else 100
        (folder / f"{number}.jpg").write_bytes(jpeg(photograph(height, 160, number)))
    assert main(["data", "prepare", str(source), str(out), "--form", form, "--shorter-side", "32"]) == 0
    before, after = (open_folder(str(folder)).splits["train"].read(range(6)) for folder in (source, out))
    assert [(record.label, record.problem) for record in after] == [(record.label, "") for record in before]
    assert [min(pixels_of(record.data).shape[:2]) for record in after] == [32, 32, 32, 32, 32, 20]
    assert after[5].data == before[5].data
    assert verify(out, 2, decodes=True) == (6, [])
    assert Manifest.read(out).encoding == Encoding(32)
    # The same command again has nothing to do; another size is refused.
    prepare(source, out, 256 << 20, 1, form, Encoding(32))
    with pytest.raises(ConfigError, match="other options"):
        prepare(source, out, 256 << 20, 1, form, Encoding(48))


def test_the_number_of_shards_is_that_of_what_is_written(tmp_path: Path):
    folder = tmp_path / "source" / "train" / "cat"
    folder.mkdir(parents=True)
    for number in range(24):
        (folder / f"{number}.jpg").write_bytes(jpeg(photograph(300, 300, number)))
    shards = prepare(tmp_path / "source", tmp_path / "out", 8000, 1, encoding=Encoding(32)).splits["train"]
    written = open_folder(str(tmp_path / "out")).splits["train"].read(range(24))
    assert len(shards) == round(sum(len(record.data) for record in written) / 8000) > 1


def test_a_size_below_one_pixel_is_one_line(tmp_path: Path, capsys):
    assert main(["data", "prepare", str(tmp_path), str(tmp_path / "out"), "--shorter-side", "0"]) == 2
    assert "--shorter-side: 0 is less than 1" in capsys.readouterr().err
