"""A file that does not fit a network is one line that names the tensors; what is allowed keeps its random values."""

import hashlib
import shlex
from dataclasses import replace

import jax
import ml_dtypes  # noqa: F401 names narrow types for NumPy
import numpy as np
import pytest
from network_weights import drawn
from safetensors.numpy import load_file, save_file
from test_weights import SMALL_VIT, abstract_state, load, random_like

from gnp_scale.config import Config, ConfigError, ModelConfig
from gnp_scale.weights.saving import as_npz, as_safetensors

VIT = ModelConfig("vit_ti", pool="token", **SMALL_VIT)


@pytest.fixture
def abstract(set_mesh):
    set_mesh()
    return abstract_state(VIT, 16)


@pytest.fixture
def tensors(abstract, tmp_path):
    """Those of a whole file for `VIT`."""
    (tmp_path / "whole.safetensors").write_bytes(as_safetensors(Config(model=VIT), random_like(abstract), 0, None))
    return load_file(tmp_path / "whole.safetensors")


def loaded(tensors, abstract, tmp_path, config=VIT, **options):
    save_file(tensors, tmp_path / "w.safetensors")
    return load(tmp_path / "w.safetensors", config, abstract, 16, **options)


def without(tensors, *names):
    return {name: array for name, array in tensors.items() if name not in names}


MISFITS = {
    "missing": (lambda t: without(t, "norm.bias"), "missing: norm.bias", "norm.bias"),
    "extra": (lambda t: t | {"fc_norm.bias": np.ones(24, np.float32)}, "extra: fc_norm.bias", "fc_norm.bias"),
    "no head": (lambda t: without(t, "head.weight", "head.bias"), "missing: head.bias, head.weight", "head.*"),
    "another width": (
        lambda t: t | {"norm.bias": np.ones(25, np.float32)},
        "of another shape: norm.bias",
        "norm.bias",
    ),
    "a transposed kernel": (
        lambda t: t | {"blocks.1.mlp.fc1.weight": t["blocks.1.mlp.fc1.weight"].T.copy()},
        "of another shape: blocks.1.mlp.fc1.weight",
        "blocks.1.mlp.*",
    ),
    "grey patches": (
        lambda t: t | {"patch_embed.proj.weight": t["patch_embed.proj.weight"][:, :1].copy()},
        "of another shape: patch_embed.proj.weight",
        "patch_embed.proj.weight",
    ),
    "no square of positions": (
        lambda t: t | {"pos_embed": np.ones((1, 7, 24), np.float32)},
        "of another shape: pos_embed",
        "pos_embed",
    ),
    "no features for the head": (
        lambda t: t | {"head.weight": np.ones((10, 12), np.float32)},
        "of another shape: head.weight",
        "head.weight",
    ),
}


@pytest.mark.parametrize(("change", "part", "pattern"), MISFITS.values(), ids=MISFITS)
def test_a_misfit_is_named_and_can_be_allowed(change, part, pattern, abstract, tensors, tmp_path):
    with pytest.raises(ConfigError) as error:
        loaded(change(tensors), abstract, tmp_path)
    assert part in str(error.value)
    assert "--model.init-allow" in str(error.value)
    assert "\n" not in str(error.value)
    report, given = loaded(change(tensors), abstract, tmp_path, init_allow=(pattern,))
    assert part in report.line()
    absent = [leaf is None for leaf in jax.tree.leaves(given, is_leaf=lambda leaf: leaf is None)]
    num_absent = {"extra": 0, "no head": 2}.get(part.partition(":")[0], 2 if pattern == "head.*" else 1)
    assert sum(absent) == num_absent


def test_a_head_for_other_classes_is_new_and_the_rest_is_loaded(abstract, tensors, tmp_path):
    other = tensors | drawn({"head.weight": (1000, 24), "head.bias": (1000,)})
    report, (params, _) = loaded(other, abstract, tmp_path)
    assert "the head (head.bias, head.weight) is new, because the file has another number of classes" in report.line()
    assert params["head"] == {"kernel": None, "bias": None}
    np.testing.assert_array_equal(params["norm"]["bias"], tensors["norm.bias"])


def test_a_pattern_that_matches_nothing_is_refused(abstract, tensors, tmp_path):
    changed = without(tensors, "norm.bias")
    with pytest.raises(ConfigError, match=r"model.init_allow has head\.\*, which matches no misfit"):
        loaded(changed, abstract, tmp_path, init_allow=("norm.bias", "head.*"))


def test_many_misfits_are_counted_and_the_suggested_patterns_allow_all(abstract, tensors, tmp_path):
    few = {"norm.bias": tensors["norm.bias"], "fc.bias": np.ones(3, np.float32)}
    with pytest.raises(ConfigError, match=r"missing: .* and \d+ more") as error:
        loaded(few, abstract, tmp_path)
    flags = shlex.split(str(error.value).partition("--model.init-allow ")[2].removesuffix(" if that is meant"))
    assert flags == ["blocks.*", "cls_token", "fc.bias", "head.*", "norm.weight", "patch_embed.*", "pos_embed"]
    loaded(few, abstract, tmp_path, init_allow=tuple(flags))


def test_a_class_token_is_not_dropped_silently(set_mesh, tensors, tmp_path):
    config = replace(VIT, pool="average")
    average = abstract_state(config, 16)
    with pytest.raises(ConfigError, match="extra: cls_token"):
        loaded(tensors, average, tmp_path, config)
    report, (params, _) = loaded(tensors, average, tmp_path, config, init_allow=("cls_token",))
    assert report.resampled == ["pos_embed"]
    np.testing.assert_array_equal(params["position"], tensors["pos_embed"][0, 1:])


def test_scanned_blocks_are_loaded_as_a_whole(set_mesh, tensors, tmp_path):
    config = replace(VIT, scan_layers=True)
    changed = without(tensors, "blocks.1.norm1.bias")
    with pytest.raises(ConfigError, match=r"blocks/norm_attention/bias for some blocks only.*model\.scan_layers"):
        loaded(changed, abstract_state(config, 16), tmp_path, config, init_allow=("blocks.1.*",))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value, abstract, tensors, tmp_path):
    tensors["blocks.0.norm1.bias"][3] = value
    with pytest.raises(ConfigError, match=r"numbers in blocks\.0\.norm1\.bias that are not finite"):
        loaded(tensors, abstract, tmp_path)


def test_a_number_beyond_float32_is_refused(abstract, tensors, tmp_path):
    changed = tensors | {"norm.bias": np.full(24, 1e39)}
    with pytest.raises(ConfigError, match=r"norm\.bias that are not finite"):
        loaded(changed, abstract, tmp_path)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_files_that_are_damaged_or_no_weights_are_one_line(abstract, tensors, tmp_path):
    save_file(tensors, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    archive = as_npz(Config(model=VIT), random_like(abstract))
    middle = len(archive) // 2
    np.savez(tmp_path / "pickle.npz", trap=np.array([Trap()], dtype=object))
    np.save(tmp_path / "array.npy", np.ones(3))
    # Bit 0 of the flags of a member says that it is encrypted; the two bytes that follow name its compression.
    place = archive.rindex(b"PK\1\2") + 8
    files = {
        "empty.safetensors": b"",
        "cut.safetensors": whole[:-5],
        "text.safetensors": b"version https://git-lfs.github.com/spec/v1\n",
        "empty.npz": b"",
        "cut.npz": archive[:middle],
        "flipped.npz": archive[:middle] + bytes([archive[middle] ^ 1]) + archive[middle + 1 :],
        "pickle.npz": (tmp_path / "pickle.npz").read_bytes(),
        "array.npz": (tmp_path / "array.npy").read_bytes(),
        "encrypted.npz": archive[:place] + b"\1" + archive[place + 1 :],
        "compressed.npz": archive[: place + 2] + b"\x63" + archive[place + 3 :],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"which cannot be read \(.*\): fetch it again") as error:
            load(tmp_path / name, VIT, abstract, 16)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "complex64"])
@pytest.mark.parametrize(
    "save", [save_file, lambda tensors, path: np.savez(path, **tensors)], ids=["safetensors", "npz"]
)
def test_numbers_that_are_no_weights_are_one_line(dtype, save, abstract, tensors, tmp_path):
    """Those of eight bits need a scale."""
    path = tmp_path / ("w.safetensors" if save is save_file else "w.npz")
    save(tensors | {"norm.bias": tensors["norm.bias"].astype(dtype)}, path)
    with pytest.raises(ConfigError, match=r"which cannot be read \(norm\.bias has the type .*\): fetch it again"):
        load(path, VIT, abstract, 16)


PATHS = {
    "resnet20.th": r"a pickle, which can run code: convert it .* resnet20\.th resnet20\.safetensors$",
    "pytorch_model.bin": "weights_only=True",
    "weights.h5": r"ends in \.safetensors or \.npz",
    "gone.safetensors": "there is no such file",
    "gs://bucket/w.npz": "mount the bucket",
}


@pytest.mark.parametrize(("name", "part"), PATHS.items())
def test_other_files_are_refused_in_one_line(name, part, abstract, tmp_path):
    text = name if "://" in name else str(tmp_path / name)
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ConfigError, match=part) as error:
        load(text, VIT, abstract, 16)
    assert "\n" not in str(error.value)


def test_the_report_has_the_digest_of_the_file(abstract, tensors, tmp_path):
    report, _ = loaded(tensors, abstract, tmp_path)
    assert report.sha256 == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert len(report.used) == len(tensors)
