"""Positions and patches of another size become what timm makes of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from network_weights import drawn
from test_weights import FOLDER, SMALL_VIT, abstract_state, load, random_like

from gnp_scale.config import Config, ModelConfig
from gnp_scale.models import swin
from gnp_scale.weights import resample
from gnp_scale.weights.saving import as_safetensors

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.mark.parametrize(
    ("kind", "shape", "arguments", "expected"), json.loads((FOLDER / "resampled.json").read_text())
)
def test_resampling_is_that_of_timm(kind, shape, arguments, expected):
    arguments = [tuple(value) if isinstance(value, list) else value for value in arguments]
    given = getattr(resample, kind)(drawn({"old": shape})["old"], *arguments)
    np.testing.assert_allclose(given, expected, atol=1e-6 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_images_and_patches_of_another_size_are_resampled(name, monkeypatch, set_mesh, tmp_path):
    set_mesh()
    monkeypatch.setitem(swin.LAYOUTS, "swin_t", (32, (1, 1, 1, 1)))
    old = {"vit": ModelConfig("vit_ti", pool="token", **SMALL_VIT), "swin": ModelConfig("swin_t")}[name]
    new, old_size, new_size = replace(old, patch_size=4) if name == "vit" else old, 64, 96
    state = random_like(abstract_state(old, old_size))
    file = tmp_path / "w.safetensors"
    file.write_bytes(as_safetensors(Config(model=old), state, 0, None))
    report, (params, _) = load(file, new, abstract_state(new, new_size), new_size)
    if name == "vit":
        assert sorted(report.resampled) == ["patch_embed.proj.weight", "pos_embed"]
        np.testing.assert_array_equal(params["position"], resample.positions(state[0]["position"], (24, 24), 1))
        np.testing.assert_array_equal(params["embed"]["kernel"], resample.patches(state[0]["embed"]["kernel"], (4, 4)))
    else:
        assert len(report.resampled) == 4
        old_table, new_table = (tree["blocks"]["3_00"]["attention"]["position"] for tree in (state[0], params))
        np.testing.assert_array_equal(new_table, resample.relative_positions(old_table, (5, 5)))


def test_positions_without_a_class_token_are_those_of_big_vision():
    """It adds no position to the class token."""
    grid_NxD = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.testing.assert_array_equal(resample.positions(grid_NxD, (2, 2), 1), [[0, 0], *grid_NxD.tolist()])
    with_token = np.concatenate([[[9, 9]], grid_NxD])
    np.testing.assert_array_equal(resample.positions(with_token, (2, 2), 0), grid_NxD)
    assert resample.positions(np.zeros((7, 2), np.float32), (2, 2), 0) is None
