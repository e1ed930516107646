"""Weights written for other libraries come back bitwise, under the names and shapes that those libraries have."""

import collections
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_weights import drawn
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_models_timm import CASES, FOLDER, SMALL_VIT

from gnp_scale.config import Config, ConfigError, ModelConfig
from gnp_scale.data.dataset import Dataset, Split
from gnp_scale.mesh import sharding
from gnp_scale.models import registry, vgg
from gnp_scale.models.torch_weights import from_torch
from gnp_scale.weights.loading import Initial
from gnp_scale.weights.saving import as_npz, as_safetensors

pytestmark = pytest.mark.usefixtures("unoptimized")

FURTHER = {
    "wide_resnet": (ModelConfig("wrn_16_4"), 8),
    "vit_22b": (ModelConfig("vit_22b", **SMALL_VIT), 16),
    "scanned": (ModelConfig("vit_ti", scan_layers=True, **SMALL_VIT), 16),
    "scanned cait": (ModelConfig("cait_xxs24", scan_layers=True, **SMALL_VIT), 16),
}
"""Networks without a fixture, with the size of their images."""
IN_NPZ = {
    "token": ModelConfig("vit_ti", pool="token", **SMALL_VIT),
    "average": ModelConfig("vit_ti", **SMALL_VIT),
    "scanned": ModelConfig("vit_ti", scan_layers=True, **SMALL_VIT),
    "mixer": ModelConfig("mixer_s", patch_size=8),
}


def abstract_state(config, size, num_classes=10, channels=3):
    """Shapes and shardings of parameters and batch statistics, on the current mesh."""
    model = registry.create(config, (size, size, channels), num_classes, 8)

    def on_mesh(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf.sharding.spec))

    return jax.tree.map(on_mesh, jax.eval_shape(model.init, jax.random.key(0)))


def random_like(abstract):
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.standard_normal(leaf.shape).astype(np.float32), abstract)


def dataset(size):
    split = Split(np.zeros((1, size, size, 3), np.uint8), np.zeros(1, np.int32))
    return Dataset("none", split, split, 10, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def load(file, config, abstract, size, **options):
    initial = Initial(replace(config, init_from=str(file), **options), (size, size, 3), abstract)
    return initial.check(), initial.load()


def assert_equal(given, expected):
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, given, expected)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"vgg_large"}))
def test_an_export_has_the_names_and_shapes_of_timm_and_comes_back_bitwise(name, monkeypatch, set_mesh, tmp_path):
    set_mesh()
    case = CASES[name]
    if case.sizes is not None:
        monkeypatch.setitem(*case.sizes)
    monkeypatch.setattr(vgg, "HIDDEN", 24)
    stored = json.loads((FOLDER / f"{name}.json").read_text())
    shapes = {key: tuple(24 if side == 4096 else side for side in shape) for key, shape in stored["shapes"].items()}
    abstract, weights = abstract_state(case.config, stored["size"]), drawn(shapes)
    state = tuple(from_torch(weights, tree, case.torch_name) for tree in abstract)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(as_safetensors(Config(model=case.config), state, 3, dataset(stored["size"])))
    written = load_file(file)
    counters = {key for key in written if key.endswith("num_batches_tracked")}
    assert {key: array.shape for key, array in written.items() if key not in counters} == shapes
    assert len(counters) == sum(key.endswith("running_mean") for key in shapes)
    jax.tree.map(np.testing.assert_array_equal, {key: written[key] for key in shapes}, weights)
    assert_equal(load(file, case.config, abstract, stored["size"])[1], state)


@pytest.mark.parametrize("name", FURTHER)
def test_networks_without_a_published_file_come_back_bitwise(name, set_mesh, tmp_path):
    set_mesh()
    config, size = FURTHER[name]
    abstract = abstract_state(config, size)
    state = random_like(abstract)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(as_safetensors(Config(model=config), state, 3, None))
    assert_equal(load(file, config, abstract, size)[1], state)


def test_scanned_blocks_have_the_names_of_single_ones(set_mesh, tmp_path):
    set_mesh()
    single = ModelConfig("vit_ti", **SMALL_VIT)
    state = random_like(abstract_state(single, 16))
    file = tmp_path / "weights.safetensors"
    file.write_bytes(as_safetensors(Config(model=single), state, 0, None))
    scanned = replace(single, scan_layers=True)
    (params, _) = load(file, scanned, abstract_state(scanned, 16), 16)[1]
    blocks = [state[0]["blocks"][f"{number:02d}"] for number in range(2)]
    assert_equal(params["blocks"], jax.tree.map(lambda *arrays: np.stack(arrays), *blocks))


def published(config, prefix=""):
    """Names as in the files of vision_transformer (with a class token) and of big_vision, written out."""
    if config.name.startswith("mixer"):
        inner = [
            f"{mlp}_mixing/Dense_{n}/{leaf}"
            for mlp in ("token", "channel")
            for n in (0, 1)
            for leaf in ("kernel", "bias")
        ]
        inner += [f"LayerNorm_{n}/{leaf}" for n in (0, 1) for leaf in ("scale", "bias")]
        names = [f"MixerBlock_{block}/{name}" for block in range(8) for name in inner]
        names += ["stem/kernel", "stem/bias", "pre_head_layer_norm/scale", "pre_head_layer_norm/bias"]
        return {prefix + name for name in [*names, "head/kernel", "head/bias"]}
    is_token = config.pool == "token"
    attention, mlp, norm = ("1", "3", "2") if is_token else ("0", "0", "1")
    parts = ("query", "key", "value", "out")
    inner = [f"MultiHeadDotProductAttention_{attention}/{part}/{leaf}" for part in parts for leaf in ("kernel", "bias")]
    inner += [f"MlpBlock_{mlp}/Dense_{number}/{leaf}" for number in (0, 1) for leaf in ("kernel", "bias")]
    inner += [f"LayerNorm_{number}/{leaf}" for number in ("0", norm) for leaf in ("scale", "bias")]
    names = [f"Transformer/encoderblock_{block}/{name}" for block in range(2) for name in inner]
    names += ["Transformer/encoder_norm/scale", "Transformer/encoder_norm/bias", "embedding/kernel", "embedding/bias"]
    names += ["cls", "Transformer/posembed_input/pos_embedding"] if is_token else ["pos_embedding"]
    return {prefix + name for name in [*names, "head/kernel", "head/bias"]}


@pytest.mark.parametrize("name", IN_NPZ)
def test_an_npz_has_the_names_of_the_published_files_and_comes_back_bitwise(name, set_mesh, tmp_path):
    set_mesh()
    config = IN_NPZ[name]
    abstract = abstract_state(config, 16)
    state = random_like(abstract)
    file = tmp_path / "weights.npz"
    file.write_bytes(as_npz(Config(model=config), state))
    with np.load(file) as written:
        assert set(written.files) == published(config, "" if name == "token" else "params/")
    assert_equal(load(file, config, abstract, 16)[1], state)


def test_queries_keys_and_values_have_the_shapes_of_flax(set_mesh, tmp_path):
    """D x H x K for D channels and H heads of K channels, and one array for each."""
    set_mesh()
    state = random_like(abstract_state(IN_NPZ["token"], 16))
    (tmp_path / "weights.npz").write_bytes(as_npz(Config(model=IN_NPZ["token"]), state))
    attention = state[0]["blocks"]["01"]["attention"]
    with np.load(tmp_path / "weights.npz") as written:
        folder = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
        np.testing.assert_array_equal(written[f"{folder}/key/kernel"], attention["in_proj"]["kernel"][:, 1])
        np.testing.assert_array_equal(written[f"{folder}/value/bias"], attention["in_proj"]["bias"][2])
        np.testing.assert_array_equal(written[f"{folder}/out/kernel"], attention["out_proj"]["kernel"])
        assert written["cls"].shape == (1, 1, 24)
        assert written["Transformer/posembed_input/pos_embedding"].shape == (1, 5, 24)


def test_a_training_checkpoint_of_big_vision_with_stacked_blocks_in_bfloat16(set_mesh, tmp_path, monkeypatch):
    """NumPy knows no bfloat16, so the file has two bytes without a type for each number."""
    set_mesh()
    config = IN_NPZ["average"]
    abstract = abstract_state(config, 16)
    state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_like(abstract))
    (tmp_path / "single.npz").write_bytes(as_npz(Config(model=config), state))
    with np.load(tmp_path / "single.npz") as file:
        tensors = {name.removeprefix("params/"): file[name] for name in file.files}
    assert tensors["head/bias"].dtype == "V2"
    blocks = {name for name in tensors if "encoderblock_0" in name}
    stacked = {
        name.replace("encoderblock_0", "encoderblock"): np.stack(
            [tensors.pop(name.replace("encoderblock_0", f"encoderblock_{n}")) for n in range(2)]
        )
        for name in blocks
    }
    others = {"opt/state/step": np.zeros(()), "chrono/steps": np.ones(3)}
    np.savez(tmp_path / "w.npz", **{f"opt/target/{name}": x for name, x in (tensors | stacked).items()}, **others)
    num_reads, read = collections.Counter(), np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(
        np.lib.npyio.NpzFile, "__getitem__", lambda file, key: num_reads.update([key]) or read(file, key)
    )
    assert_equal(load(tmp_path / "w.npz", config, abstract, 16)[1], jax.tree.map(np.float32, state))
    # To check the file, and to load it, and not for each block again.
    assert {num_reads[f"opt/target/{name}"] for name in stacked} == {2}


def test_each_device_gets_its_shard(set_mesh, tmp_path):
    set_mesh(fsdp=4, tensor=2)
    config = replace(IN_NPZ["average"], width=32, num_heads=4)
    abstract = abstract_state(config, 16)
    state = random_like(abstract)
    (tmp_path / "weights.safetensors").write_bytes(as_safetensors(Config(model=config), state, 0, None))
    loaded = load(tmp_path / "weights.safetensors", config, abstract, 16)[1]
    assert_equal(loaded, state)
    assert jax.tree.map(lambda x: x.sharding.spec, loaded) == jax.tree.map(lambda x: x.sharding.spec, abstract)
    kernel = loaded[0]["blocks"]["00"]["mlp"]["in_proj"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(32 // 4, 128 // 2)}


def test_half_precision_becomes_float32(set_mesh, tmp_path):
    set_mesh()
    config = ModelConfig("vit_ti", **SMALL_VIT)
    abstract = abstract_state(config, 16)
    state = random_like(abstract)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(as_safetensors(Config(model=config), state, 0, None))
    for dtype in (np.float16, jnp.bfloat16):
        save_file({name: array.astype(dtype) for name, array in load_file(file).items()}, tmp_path / "half.safetensors")
        rounded = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype).astype(np.float32), state)
        loaded = load(tmp_path / "half.safetensors", config, abstract, 16)[1]
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype("float32")}
        assert_equal(loaded, rounded)


def test_the_metadata_name_the_network_of_timm(set_mesh, tmp_path):
    set_mesh()
    config = ModelConfig("vit_ti", **SMALL_VIT)
    state = random_like(abstract_state(config, 16))
    (tmp_path / "w.safetensors").write_bytes(as_safetensors(Config(model=config), state, 5, dataset(16)))
    with safe_open(tmp_path / "w.safetensors", "numpy") as file:
        about = file.metadata()
    assert about["architecture"] == "vit_base_patch16_224"
    sizes = {"img_size": [16, 16], "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 4.0}
    others = {"global_pool": "avg", "class_token": False, "fc_norm": False, "act_layer": "gelu_tanh", "in_chans": 3}
    assert json.loads(about["model_args"]) == sizes | others
    values = {name: json.loads(about[name]) for name in ("mean", "std", "input_size", "num_classes", "step")}
    expected = {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "input_size": [3, 16, 16],
        "num_classes": 10,
        "step": 5,
    }
    assert values == expected


def test_a_stem_that_timm_does_not_have_is_not_said_to_be_of_timm(set_mesh, tmp_path):
    set_mesh()
    config = ModelConfig("resnet18", stem="cifar")
    state = random_like(abstract_state(config, 16))
    (tmp_path / "w.safetensors").write_bytes(as_safetensors(Config(model=config), state, 5, dataset(16)))
    with safe_open(tmp_path / "w.safetensors", "numpy") as file:
        assert "architecture" not in file.metadata()


def test_an_npz_is_for_networks_that_are_published_so(set_mesh):
    set_mesh()
    config = ModelConfig("resnet20")
    with pytest.raises(ConfigError, match="for ViT and MLP-Mixer only"):
        as_npz(Config(model=config), random_like(abstract_state(config, 8)))
