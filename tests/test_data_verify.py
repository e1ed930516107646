"""`gnp-scale data verify` finds whatever has changed."""

import io
import tarfile
from pathlib import Path

import pytest
from image_sets import NUM_IMAGES, png, train_shards, write_folder, write_parquet

from gnp_scale.data.containers.open_folder import INDEX_FILE, open_folder, write_index
from gnp_scale.data.formats import DamagedFileError
from gnp_scale.data.manifest import MANIFEST_FILE
from gnp_scale.data.prepare import prepare
from gnp_scale.data.shard_forms import SHARD_FORMS
from gnp_scale.data.verify import verify

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(params=SHARD_FORMS)
def to(request) -> str:
    """The form of the shards."""
    return request.param


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The images as folders of classes."""
    return write_folder(tmp_path / "source")


@pytest.fixture
def prepared(to: str, source: Path, tmp_path: Path) -> Path:
    prepare(source, tmp_path / "numbers", 300, 1, to)
    return tmp_path / "numbers"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(bytes(data))


def relabel(path: Path, to: str) -> None:
    """Writes a shard anew, with right hashes and one wrong label."""
    records = open_folder(str(path.parent)).splits["train"].read(range(7))
    path.unlink()
    writer = SHARD_FORMS[to].open(path)
    for number, record in enumerate(records):
        # The names in tar files would be longer each time.
        named = record._replace(name=record.name.rpartition("/")[2])
        writer.write(number, named._replace(label=(record.label + (number == 1)) % 3))
    writer.close()


def test_verify_names_a_flipped_bit(to: str, prepared: Path):
    shard = train_shards(prepared)[1]
    flip(shard, shard.read_bytes().index(b"\x89PNG") + 30)
    _, problems = verify(prepared, 2, decodes=False)
    assert problems[0] == f"{shard.name} is not the file of {MANIFEST_FILE}: its SHA-256 differs"
    assert len(problems) == 2
    part = f"record 0 of {shard.name}: its container is damaged" if to == "arrayrecord" else "not those of the index"
    assert part in problems[1]


def test_verify_names_missing_truncated_and_foreign_shards(prepared: Path):
    first, second, *_ = train_shards(prepared)
    foreign = f"{second.name.replace('00001', '00007')}"
    (prepared / foreign).write_bytes(b"?")
    first.unlink()
    second.write_bytes(second.read_bytes()[: 70_000 if "array_record" in second.name else 700])
    _, problems = verify(prepared, 2, decodes=False)
    assert problems[0] == f"{foreign} does not belong to the data set"
    assert f"{first.name} is missing" in problems
    assert f"{second.name} is not the file of {MANIFEST_FILE}: its SHA-256 differs" in problems
    assert any(second.name in problem and "not a whole" in problem for problem in problems)


def test_verify_names_a_wrong_label(to: str, source: Path, tmp_path: Path):
    out = tmp_path / "numbers"
    prepare(source, out, 10_000, 1, to)
    (shard,) = train_shards(out)
    relabel(shard, to)
    _, problems = verify(out, 2, decodes=False)
    assert f"{shard.name} is not the file of {MANIFEST_FILE}: its SHA-256 differs" in problems
    if to == "webdataset":
        assert problems[1:] == ["train: 00000001/4.png has another label or place than in the index"]
        # An index of the wrong labels agrees with the tar file, and not with the manifest.
        write_index(out)
        assert verify(out, 2, decodes=False)[1][1:] == [f"{shard.name} has other labels than in {MANIFEST_FILE}"]


def test_verify_names_other_class_names(to: str, prepared: Path):
    names = prepared / ("label.labels.txt" if to == "arrayrecord" else "classnames.txt")
    names.write_text(names.read_text().replace("two", "too"))
    if to == "webdataset":
        write_index(prepared)
    assert verify(prepared, 2, decodes=False)[1] == [f"the class names differ from those of {MANIFEST_FILE}"]


def test_verify_names_a_missing_index_which_is_the_same_when_made_again(source: Path, tmp_path: Path):
    out = tmp_path / "numbers"
    prepare(source, out, 300, 1, "webdataset")
    before = (out / INDEX_FILE).read_bytes()
    (out / INDEX_FILE).unlink()
    (problem,) = verify(out, 2, decodes=False)[1]
    assert problem.startswith(f"{INDEX_FILE} is missing, without which no bucket is read: run gnp-scale data index")
    write_index(out)
    assert verify(out, 2, decodes=False)[1] == []
    assert (out / INDEX_FILE).read_bytes() == before


@pytest.mark.parametrize("manifest", ["{", "[]", '{"shards": []}', '{"splits": []}'])
def test_a_manifest_of_another_program_is_told(manifest: str, tmp_path: Path):
    """Whether it is damaged, and has other splits than the names of files, cannot be known."""
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name, content in (("a.png", b"image"), ("a.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (tmp_path / MANIFEST_FILE).write_text(manifest)
    with pytest.raises(DamagedFileError, match=r"manifest\.json is not one of gnp-scale data prepare \(.*\): restore"):
        write_index(tmp_path)


def test_an_index_that_is_made_again_has_the_splits_of_the_manifest(tmp_path: Path):
    """No name of a file tells where that of the data set ends and that of a split begins."""
    pytest.importorskip("pyarrow")
    for path in (write_parquet(tmp_path) / "data").glob("validation-*"):
        path.rename(path.with_name("extra-00000-of-00001.parquet"))
    out = tmp_path / "train-set"
    prepare(tmp_path / "data", out, 300, 1, "webdataset")
    write_index(out)
    assert {name: len(source) for name, source in open_folder(str(out)).splits.items()} == {"train": 7, "extra": 3}
    assert verify(out, 2, decodes=False)[1] == []


def test_verify_names_an_image_that_cannot_be_decoded(source: Path, tmp_path: Path):
    (source / "train" / "zero" / "bad.png").write_bytes(png(0)[:45])
    prepare(source, tmp_path / "numbers", 300, 1)
    assert verify(tmp_path / "numbers", 2, decodes=False)[1] == []
    (problem,) = verify(tmp_path / "numbers", 2, decodes=True)[1]
    assert problem.startswith("train: train/zero/bad.png: ")


def test_verify_compares_a_folder_with_its_index(source: Path):
    write_index(source)
    assert verify(source, 2, decodes=True) == (NUM_IMAGES, [])
    flip(source / "train" / "two" / "5.PNG", 40)
    (source / "val" / "zero" / "9.PNG").unlink()
    (source / "train" / "zero" / "new.png").write_bytes(png(0))
    assert sorted(verify(source, 2, decodes=False)[1]) == [
        "train/zero/new.png is not in the index: run gnp-scale data index again",
        "train: train/two/5.PNG: its bytes are not those of the index",
        "validation: val/zero/9.PNG: it cannot be read (No such file or directory)",
    ]


def test_verify_names_an_empty_image_without_decoding(source: Path):
    (source / "train" / "zero" / "bad.png").touch()
    assert verify(source, 2, decodes=False)[1] == ["train: train/zero/bad.png: it is empty"]
