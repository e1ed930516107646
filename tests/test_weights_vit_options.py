"""Weights of vision transformers with registers, attention pools, SwiGLU, or other positions, in both directions."""

from dataclasses import replace

import numpy as np
import pytest
from network_weights import drawn
from safetensors.numpy import load_file, save_file
from test_weights import SMALL_VIT, abstract_state, assert_equal, dataset, load, random_like

from gnp_scale.config import Config, ConfigError, ModelConfig
from gnp_scale.weights import resample
from gnp_scale.weights.saving import as_npz, as_safetensors
from gnp_scale.weights.timm_names import architecture


def vit(name="vit_ti", **options):
    return ModelConfig(name, **SMALL_VIT, **options)


ATTENTION_POOL = {
    "attn_pool.latent": (1, 1, 24),
    **{f"attn_pool.{name}.bias": (size,) for name, size in (("q", 24), ("kv", 48), ("proj", 24), ("norm", 24))},
    **{f"attn_pool.{name}.weight": (size, 24) for name, size in (("q", 24), ("kv", 48), ("proj", 24))},
    "attn_pool.norm.weight": (24,),
    "attn_pool.mlp.fc1.weight": (96, 24),
    "attn_pool.mlp.fc1.bias": (96,),
    "attn_pool.mlp.fc2.weight": (24, 96),
    "attn_pool.mlp.fc2.bias": (24,),
}
SWIGLU = {"blocks.1.mlp.fc1_g.weight": (96, 24), "blocks.1.mlp.fc1_x.bias": (96,)}
REP = {"pre_logits.fc.weight": (24, 24), "pre_logits.fc.bias": (24,)}
CASES = {
    "registers": (vit(pool="token", num_registers=3), {"reg_token": (1, 3, 24), "pos_embed": (1, 8, 24)}),
    "registers alone": (vit(num_registers=3), {"reg_token": (1, 3, 24), "pos_embed": (1, 4, 24)}),
    "registers of DeiT": (vit("deit3_s", pool="token", num_registers=3), {"pos_embed": (1, 4, 24)}),
    "attention": (vit(pool="attention"), ATTENTION_POOL),
    "scanned": (vit(pool="attention", mlp="swiglu", scan_layers=True), ATTENTION_POOL | SWIGLU),
    "rep": (vit(rep_layer=True, position="sincos2d"), REP),
    "rope": (
        vit("deit3_s", pool="token", num_registers=3, position="rope", mlp="swiglu"),
        SWIGLU | {"blocks.0.gamma_1": (24,), "blocks.1.gamma_2": (24,)},
    ),
}
"""Networks, and the names and shapes of what they alone have: those of timm 1.0.31."""
NO_POSITIONS = ("rep", "rope")


@pytest.mark.parametrize("name", CASES)
def test_each_option_has_the_names_of_timm_and_comes_back_bitwise(name, set_mesh, tmp_path):
    set_mesh()
    config, expected = CASES[name]
    abstract = abstract_state(config, 16)
    state = random_like(abstract)
    file = tmp_path / "w.safetensors"
    file.write_bytes(as_safetensors(Config(model=config), state, 0, None))
    shapes = {key: array.shape for key, array in load_file(file).items()}
    assert expected.items() <= shapes.items()
    assert ("pos_embed" in shapes) == (name not in NO_POSITIONS)
    report, loaded = load(file, config, abstract, 16)
    assert (report.missing, report.extra, report.resampled) == ([], [], [])
    assert_equal(loaded, state)


def test_an_npz_has_the_names_of_big_vision(set_mesh, tmp_path):
    """Also as the images' part of SigLIP, whose text part is left out."""
    set_mesh()
    config = vit(pool="attention", rep_layer=True, position="sincos2d")
    abstract = abstract_state(config, 16)
    state = random_like(abstract)
    file = tmp_path / "w.npz"
    file.write_bytes(as_npz(Config(model=config), state))
    with np.load(file) as archive:
        tensors = {name.removeprefix("params/"): archive[name] for name in archive.files}
    assert not any("pos" in name for name in tensors)
    attention = "MAPHead_0/MultiHeadDotProductAttention_0"
    names = [f"{attention}/{part}/{leaf}" for part in ("query", "key", "value", "out") for leaf in ("kernel", "bias")]
    names += [f"MAPHead_0/MlpBlock_0/Dense_{number}/{leaf}" for number in (0, 1) for leaf in ("kernel", "bias")]
    names += ["MAPHead_0/probe", "MAPHead_0/LayerNorm_0/scale", "MAPHead_0/LayerNorm_0/bias"]
    rep = {"pre_logits/kernel", "pre_logits/bias"}
    assert {name for name in tensors if name.startswith(("MAPHead", "pre_"))} == {*names, *rep}
    assert tensors["MAPHead_0/probe"].shape == (1, 1, 24)
    pool = state[0]["attention_pool"]["key_value"]
    np.testing.assert_array_equal(tensors[f"{attention}/value/kernel"], pool["kernel"][:, 1])
    assert_equal(load(file, config, abstract, 16)[1], state)
    text = {"params/txt/head/bias": np.ones(3), "params/t": np.ones(1)}
    np.savez(tmp_path / "siglip.npz", **{f"params/img/{name}": array for name, array in tensors.items()}, **text)
    assert_equal(load(tmp_path / "siglip.npz", config, abstract, 16)[1], state)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"position": "rope"}, "rope, which big_vision does not have"),
        ({"num_registers": 2}, "no name for registers"),
        ({"mlp": "swiglu"}, "no name for blocks/00/mlp/gate"),
    ],
)
def test_what_big_vision_does_not_have_is_refused(options, part, set_mesh):
    set_mesh()
    config = vit(**options)
    with pytest.raises(ConfigError, match=part):
        as_npz(Config(model=config), random_like(abstract_state(config, 16)))


def test_class_token_and_registers_keep_their_positions_when_the_grid_changes(set_mesh, tmp_path):
    set_mesh()
    config = CASES["registers"][0]
    state = random_like(abstract_state(config, 24))
    file = tmp_path / "w.safetensors"
    file.write_bytes(as_safetensors(Config(model=config), state, 0, None))
    report, (params, _) = load(file, config, abstract_state(config, 40), 40)
    assert report.resampled == ["pos_embed"]
    old = state[0]["position"]
    np.testing.assert_array_equal(params["position"][0], old[0])
    np.testing.assert_array_equal(params["position"][1:], resample.positions(old[1:], (5, 5), 0))
    np.testing.assert_array_equal(params["registers"], state[0]["registers"])


def test_positions_of_registers_become_part_of_them(set_mesh, tmp_path):
    """A network adds both up, so it computes the same."""
    set_mesh()
    config = CASES["registers"][0]
    abstract = abstract_state(config, 16)
    state = random_like(abstract)
    file = tmp_path / "w.safetensors"
    file.write_bytes(as_safetensors(Config(model=config), state, 0, None))
    tensors = load_file(file)
    tensors["pos_embed"] = drawn({"pos_embed": (1, 8, 24)})["pos_embed"]
    save_file(tensors, file)
    params = load(file, config, abstract, 16)[1][0]
    np.testing.assert_array_equal(params["registers"], state[0]["registers"] + tensors["pos_embed"][0, 1:4])
    np.testing.assert_array_equal(params["position"], np.delete(tensors["pos_embed"][0], slice(1, 4), axis=0))


def test_dinov2_with_registers(set_mesh, tmp_path):
    """Its authors' files have a position of the class token, which DeiT-III adds to the token, and no head."""
    set_mesh()
    config = vit("deit3_s", pool="token", num_registers=4)
    abstract = abstract_state(config, 24)
    state = random_like(abstract)
    file = tmp_path / "w.safetensors"
    file.write_bytes(as_safetensors(Config(model=config), state, 0, None))
    tensors = {name: array for name, array in load_file(file).items() if not name.startswith("head")}
    tensors["register_tokens"] = tensors.pop("reg_token")
    first = drawn({"first": (1, 1, 24)})["first"]
    tensors["pos_embed"] = np.concatenate([first, tensors["pos_embed"]], axis=1)
    tensors["mask_token"] = np.ones((1, 24), np.float32)
    save_file(tensors, file)
    params = load(file, config, abstract, 24, init_allow=("head.*",))[1][0]
    np.testing.assert_array_equal(params["token"], state[0]["token"] + first[0])
    assert_equal(
        [params[name] for name in ("registers", "position", "blocks")],
        [state[0][name] for name in ("registers", "position", "blocks")],
    )


def test_the_position_of_a_class_token_is_not_lost(set_mesh, tmp_path):
    set_mesh()
    without = vit("deit3_s", pool="token")
    state = random_like(abstract_state(without, 16))
    file = tmp_path / "w.safetensors"
    file.write_bytes(as_safetensors(Config(model=without), state, 0, None))
    save_file(load_file(file) | {"pos_embed": np.ones((1, 5, 24), np.float32)}, file)
    with pytest.raises(ConfigError, match="of another shape: pos_embed"):
        load(file, without, abstract_state(without, 16), 16)


ARCHITECTURES = {
    "registers": "vit_base_patch16_224",
    "attention": "vit_base_patch16_224",
    "rope": "vit_small_plus_patch16_dinov3_qkvb",
    "rep": None,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_network_of_timm_is_named_if_there_is_one(name, set_mesh, tmp_path, capsys):
    set_mesh()
    config = CASES[name][0]
    found = architecture(config, (16, 16, 3))
    assert (found and found[0]) == ARCHITECTURES[name]
    as_safetensors(Config(model=config), random_like(abstract_state(config, 16)), 0, dataset(16))
    assert ("timm has no network like this" in capsys.readouterr().err) == (found is None)


def test_options_that_timm_has_only_apart(set_mesh):
    """Eva's pool reads registers too, and its GELU is exact; SigLIP's largest network has a name of its own."""
    image = (28, 28, 3)
    so400m = ModelConfig("vit_so400m", patch_size=14, pool="attention")
    name, arguments = architecture(so400m, image)
    assert name == "vit_so400m_patch14_siglip_224"
    assert int(arguments["embed_dim"] * arguments["mlp_ratio"]) == 4304
    for options in ({"pool": "attention", "mlp": "swiglu"}, {"position": "rope"}, {"position": "sincos2d"}):
        assert architecture(replace(so400m, **{"pool": "average", **options}), image) is None
