"""Which parameters are replicated: all networks on large meshes, computed from shapes alone."""

import math
from collections import Counter

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from small_networks import ALL_NETWORKS

from gnp_scale import mesh
from gnp_scale.config import ConfigError, ModelConfig
from gnp_scale.mesh import AXES, FSDP, MOST_SILENT_MIB, P, divisible_spec, undivided
from gnp_scale.models import registry, vit

# The largest power of 2 for `fsdp` with at most 16 MiB replicated: the largest that divides the width of a transformer
# (1408 is 11 * 128), or the channels of most kernels of a convolutional network (640 is 5 * 128). Each width of a
# PyramidNet is another number, and half of them are odd.
LARGEST = {
    "vit_mu": 4096, "vit_ti": 256, "vit_s": 128, "vit_m": 512, "vit_b": 256, "vit_l": 1024, "vit_so400m": 128,
    "vit_h": 256, "vit_g": 128,
    "vit_gg": 128, "vit_22b": 2048, "resnet18": 512, "resnet34": 256, "resnet50": 256, "resnet101": 256,
    "deit3_s": 128, "deit3_m": 512, "deit3_b": 256, "deit3_l": 1024, "deit3_h": 256, "cait_xxs24": 64,
    "cait_xxs36": 64, "cait_xs24": 32, "cait_s24": 128, "cait_s36": 128, "cait_m36": 256, "cait_m48": 256,
    "swin_t": 128, "swin_s": 128, "swin_b": 512, "swin_l": 256,
    "resnet152": 256, "resnet200": 256, "wrn_16_4": 4096, "wrn_28_10": 64, "wrn_40_10": 64,
    "shake_shake_26_2x32d": 4096, "shake_shake_26_2x64d": 256, "shake_shake_26_2x96d": 64, "pyramidnet_110_48": 4096,
    "pyramidnet_110_270": 1, "pyramidnet_164_48": 4096, "pyramidnet_164_270": 1, "pyramidnet_200_240": 1,
    "pyramidnet_272_200": 1,
    "resnet20": 4096, "resnet32": 4096, "resnet44": 4096, "resnet56": 4096, "resnet110": 4096,
    "cnn_s": 4096,
    "convnext_t": 512, "convnext_s": 256, "convnext_b": 1024, "convnext_l": 512, "convnext_xl": 1024,
    "mixer_s": 1024, "mixer_b": 256, "mixer_l": 512,
    "vgg16": 512, "vgg19": 512, "vgg16_bn": 512, "vgg19_bn": 512,
}  # fmt: skip
KEY = jax.eval_shape(lambda: jax.random.key(0))
type Kernels = Counter[tuple[P, tuple[int, ...]]]


def on_mesh(fsdp: int, tensor: int = 1, replica: int = 1):
    return jax.sharding.use_abstract_mesh(
        AbstractMesh((replica, fsdp, tensor), AXES, axis_types=(AxisType.Explicit,) * 3)
    )


def config_of(name: str, **options) -> ModelConfig:
    return ModelConfig(name, patch_size=14 if name in vit.SIZES else 16, **options)


def params_of(config: ModelConfig):
    return jax.eval_shape(registry.create(config, (224, 224, 3), 1000, 4096).init, KEY)[0]


def wanted(config: ModelConfig, monkeypatch) -> Kernels:
    """The specs and shapes that the layers request."""
    found: Kernels = Counter()
    with monkeypatch.context() as patch:
        patch.setattr(mesh, "divisible_spec", lambda spec, shape: found.update([(spec, shape)]))
        params_of(config)
    return found


def all_wanted(name: str, monkeypatch) -> Kernels:
    if name not in vit.SIZES:
        return wanted(config_of(name), monkeypatch)
    # Blocks are equal: two of them show what one adds.
    one, two = (wanted(config_of(name, depth=depth), monkeypatch) for depth in (1, 2))
    return Counter({kernel: one[kernel] + (vit.SIZES[name].depth - 1) * (two - one)[kernel] for kernel in one})


def whole_mib(kernels: Kernels) -> float:
    num_bytes = 0.0
    for (spec, shape), count in kernels.items():
        axes = [
            axis
            for entry in divisible_spec(spec, shape)
            for axis in (entry if isinstance(entry, tuple) else [entry])
            if axis
        ]
        if FSDP not in axes:
            num_bytes += 4 * count * math.prod(shape) / mesh.current_axis_size(tuple(axes))
    return num_bytes / 2**20


@pytest.mark.parametrize("name", ALL_NETWORKS)
def test_little_is_whole_up_to_the_largest_mesh_of_each_network(name, monkeypatch):
    kernels = all_wanted(name, monkeypatch)
    for fsdp in (2**power for power in range(1, 13)):
        most_mib = 0.0
        for replica, tensor in ((1, 1), (2, 2), (1, 8)):
            with on_mesh(fsdp, tensor, replica):
                most_mib = max(most_mib, whole_mib(kernels))
        assert (most_mib <= MOST_SILENT_MIB) == (fsdp <= LARGEST[name])


def test_options_of_vision_transformers_add_little_that_is_whole(monkeypatch):
    """Registers, the MAP head, SwiGLU and the layer before the classifier: the largest mesh stays the same."""
    options = {"num_registers": 4, "pool": "attention", "mlp": "swiglu", "rep_layer": True}
    kernels = wanted(config_of("vit_s", **options), monkeypatch)
    for fsdp in (LARGEST["vit_s"], 2 * LARGEST["vit_s"]):
        with on_mesh(fsdp, 2):
            assert (whole_mib(kernels) <= MOST_SILENT_MIB) == (fsdp == LARGEST["vit_s"])


@pytest.mark.parametrize("scan_layers", [False, True])
def test_more_than_a_little_is_told_with_its_bytes_and_what_to_change(scan_layers):
    with on_mesh(256):
        line = undivided(params_of(config_of("vit_s", scan_layers=scan_layers)))
    assert line is not None
    for part in ("each device: 30 MiB", "mesh.fsdp 256", "attention/in_proj/kernel", "384x3x6x64", "--mesh.fsdp 128"):
        assert part in line


def test_much_is_refused():
    expected = (
        r"1221 MiB.*in_proj/kernel of 40x1408x3x16x88 .* Make --mesh.fsdp 128, and --mesh.replica 2 times as large"
    )
    with on_mesh(256), pytest.raises(ConfigError, match=expected):
        undivided(params_of(config_of("vit_g", scan_layers=True)))


@pytest.mark.parametrize("fsdp", [1, 128])
def test_of_little_nothing_is_said(fsdp):
    with on_mesh(fsdp):
        assert undivided(params_of(config_of("vit_g", scan_layers=True))) is None


@pytest.mark.parametrize("name", ["vit_l", "vit_h", "resnet18", "wrn_28_10"])
@pytest.mark.parametrize("fsdp", [6, 24, 384, 4096])
def test_the_advice_helps(name, fsdp):
    config = config_of(name, scan_layers=name in vit.SIZES)
    with on_mesh(fsdp):
        try:
            line = undivided(params_of(config))
        except ConfigError as error:
            line = str(error)
    assert line is not None
    better = int(line.partition("--mesh.fsdp ")[2].partition(",")[0])
    assert fsdp % better == 0
    with on_mesh(better):
        assert undivided(params_of(config)) is None
