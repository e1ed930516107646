"""Every registered network: its published size, the storage of its parameters, and the configurations it refuses."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from small_networks import ALL_NETWORKS

from gnp_scale.config import ConfigError, ModelConfig
from gnp_scale.models import registry
from gnp_scale.monitoring.flops import flops

pytestmark = pytest.mark.usefixtures("unoptimized")

IMAGENET = ((224, 224, 3), 1000)
IMAGENET_384 = ((384, 384, 3), 1000)
IMAGENET_448 = ((448, 448, 3), 1000)
CIFAR10 = ((32, 32, 3), 10)
TIMM = "pytorch-image-models, the model's number of parameters"
HYSTS = "hysts/pytorch_image_classification, the model's number of parameters"
DYHAN0920 = "dyhan0920/PyramidNet-PyTorch, the model's number of parameters"
AKAMASTER = "akamaster/pytorch_resnet_cifar10, the model's number of parameters"
TORCHVISION = "torchvision, the model's number of parameters"


def leaves_of(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> list[jax.ShapeDtypeStruct]:
    model = registry.create(config, image_shape, num_classes, 16)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.leaves(params)


@pytest.mark.parametrize(
    ("name", "patch_size", "task", "published", "unit", "source"),
    [
        ("vit_ti", 16, IMAGENET, 5_717_416, 1, TIMM),
        ("vit_s", 16, IMAGENET, 22_050_664, 1, TIMM),
        ("vit_b", 16, IMAGENET, 86_567_656, 1, TIMM),
        ("vit_l", 16, IMAGENET, 304_326_632, 1, TIMM),
        ("vit_h", 14, IMAGENET, 632_045_800, 1, TIMM),
        ("vit_g", 14, IMAGENET, 1.01e9, 1e7, "arXiv 2106.04560, table 2"),
        ("vit_gg", 14, IMAGENET, 1.84e9, 1e7, "arXiv 2106.04560, table 2"),
        ("vit_22b", 14, IMAGENET, 22e9, 1e9, "arXiv 2302.05442, abstract"),
        ("deit3_s", 16, IMAGENET, 22_059_496, 1, TIMM),
        ("deit3_m", 16, IMAGENET, 38_849_512, 1, TIMM),
        ("deit3_b", 16, IMAGENET, 86_585_320, 1, TIMM),
        ("deit3_l", 16, IMAGENET, 304_374_760, 1, TIMM),
        ("deit3_h", 14, IMAGENET, 632_126_440, 1, TIMM),
        ("deit3_s", 16, IMAGENET_384, 22_205_416, 1, TIMM),
        ("deit3_b", 16, IMAGENET_384, 86_877_160, 1, TIMM),
        ("deit3_l", 16, IMAGENET_384, 304_763_880, 1, TIMM),
        ("cait_xxs24", None, IMAGENET, 11_956_264, 1, TIMM),
        ("cait_xxs36", None, IMAGENET, 17_299_720, 1, TIMM),
        ("cait_xs24", None, IMAGENET_384, 26_670_088, 1, TIMM),
        ("cait_s24", None, IMAGENET, 46_916_200, 1, TIMM),
        ("cait_s24", None, IMAGENET_384, 47_062_120, 1, TIMM),
        ("cait_s36", None, IMAGENET_384, 68_366_632, 1, TIMM),
        ("cait_m36", None, IMAGENET_384, 271_221_352, 1, TIMM),
        ("cait_m48", None, IMAGENET_448, 356_460_520, 1, TIMM),
        ("swin_t", None, IMAGENET, 28_288_354, 1, TIMM),
        ("swin_s", None, IMAGENET, 49_606_258, 1, TIMM),
        ("swin_b", None, IMAGENET, 87_768_224, 1, TIMM),
        ("swin_b", None, IMAGENET_384, 87_903_584, 1, TIMM),
        ("swin_l", None, IMAGENET, 196_532_476, 1, TIMM),
        ("swin_l", None, IMAGENET_384, 196_735_516, 1, TIMM),
        ("resnet18", None, IMAGENET, 11_689_512, 1, TORCHVISION),
        ("resnet34", None, IMAGENET, 21_797_672, 1, TORCHVISION),
        ("resnet50", None, IMAGENET, 25_557_032, 1, TORCHVISION),
        ("resnet101", None, IMAGENET, 44_549_160, 1, TORCHVISION),
        ("resnet152", None, IMAGENET, 60_192_808, 1, TORCHVISION),
        ("resnet200", None, IMAGENET, 64_673_832, 1, TIMM),
        ("wrn_16_4", None, CIFAR10, 2.75e6, 1e4, "as quoted in later papers"),
        ("wrn_28_10", None, CIFAR10, 36.5e6, 1e5, "arXiv 1605.07146, table 4"),
        ("wrn_40_10", None, CIFAR10, 55.8e6, 1e5, "as quoted in later papers"),
        ("shake_shake_26_2x32d", None, CIFAR10, 2_923_162, 1, HYSTS),
        ("shake_shake_26_2x64d", None, CIFAR10, 11_653_978, 1, HYSTS),
        ("shake_shake_26_2x96d", None, CIFAR10, 26_192_922, 1, HYSTS),
        ("pyramidnet_110_48", None, CIFAR10, 1_772_706, 1, DYHAN0920),
        ("pyramidnet_110_270", None, CIFAR10, 28_485_477, 1, DYHAN0920),
        ("pyramidnet_164_48", None, CIFAR10, 1_715_442, 1, DYHAN0920),
        ("pyramidnet_164_270", None, CIFAR10, 27_216_021, 1, DYHAN0920),
        ("pyramidnet_200_240", None, CIFAR10, 26_752_702, 1, DYHAN0920),
        ("pyramidnet_272_200", None, CIFAR10, 26_210_842, 1, DYHAN0920),
        ("resnet20", None, CIFAR10, 269_722, 1, AKAMASTER),
        ("resnet32", None, CIFAR10, 464_154, 1, AKAMASTER),
        ("resnet44", None, CIFAR10, 658_586, 1, AKAMASTER),
        ("resnet56", None, CIFAR10, 853_018, 1, AKAMASTER),
        ("resnet110", None, CIFAR10, 1_727_962, 1, AKAMASTER),
        ("cnn_s", None, CIFAR10, 94_762, 1, "own"),
        ("mixer_s", 32, IMAGENET, 19_104_624, 1, TIMM),
        ("mixer_s", 16, IMAGENET, 18_528_264, 1, TIMM),
        ("mixer_b", 32, IMAGENET, 60_293_428, 1, TIMM),
        ("mixer_b", 16, IMAGENET, 59_880_472, 1, TIMM),
        ("mixer_l", 32, IMAGENET, 206_939_264, 1, TIMM),
        ("mixer_l", 16, IMAGENET, 208_196_168, 1, TIMM),
        ("convnext_t", None, IMAGENET, 28_589_128, 1, TIMM),
        ("convnext_s", None, IMAGENET, 50_223_688, 1, TIMM),
        ("convnext_b", None, IMAGENET, 88_591_464, 1, TIMM),
        ("convnext_l", None, IMAGENET, 197_767_336, 1, TIMM),
        ("convnext_xl", None, IMAGENET, 350_196_968, 1, TIMM),
        ("vgg16", None, IMAGENET, 138_357_544, 1, TIMM),
        ("vgg16_bn", None, IMAGENET, 138_365_992, 1, TIMM),
        ("vgg19", None, IMAGENET, 143_667_240, 1, TIMM),
        ("vgg19_bn", None, IMAGENET, 143_678_248, 1, TIMM),
    ],
)
def test_number_of_parameters_is_the_published_one(name, patch_size, task, published, unit, source):
    config = ModelConfig(name)
    if patch_size is not None:
        pool = "average" if name.startswith("mixer") else "token"
        config = replace(config, patch_size=patch_size, pool=pool)
    num_params = sum(math.prod(leaf.shape) for leaf in leaves_of(config, *task))
    assert round(num_params / unit) == round(published / unit), source


SO400M = ModelConfig("vit_so400m", patch_size=14)
DINOV3 = {"pool": "token", "num_registers": 4, "position": "rope"}


@pytest.mark.parametrize(
    ("config", "timm_name", "published", "difference"),
    [
        (SO400M, "vit_so400m_patch14_siglip_gap_224", 413_595_352, 0),
        (replace(SO400M, pool="attention"), "vit_so400m_patch14_siglip_224", 428_833_704, 0),
        (replace(SO400M, position="sincos2d"), "vit_so400m_patch14_siglip_gap_224", 413_595_352, -256 * 1152),
        (replace(SO400M, rep_layer=True), "vit_so400m_patch14_siglip_gap_224", 413_595_352, 1152 * 1152 + 1152),
        (ModelConfig("vit_b", num_registers=4), "vit_base_patch16_reg4_gap_256", 86_569_192, 0),
        (
            ModelConfig("deit3_s", patch_size=14, pool="token", num_registers=4),
            "vit_small_patch14_reg4_dinov2",
            22_014_952,
            0,
        ),
        # In timm, keys have no bias.
        (ModelConfig("deit3_s", **DINOV3), "vit_small_patch16_dinov3_qkvb", 21_981_160, 12 * 384),
        (
            ModelConfig("deit3_s", mlp="swiglu", **DINOV3),
            "vit_small_plus_patch16_dinov3_qkvb",
            29_077_480,
            12 * 384,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_number_of_parameters_with_options_is_that_of_timm(config, timm_name, published, difference):
    """With 1000 classes, images of 224x224, and what timm lacks or has besides."""
    num_params = sum(math.prod(leaf.shape) for leaf in leaves_of(config, *IMAGENET))
    assert num_params == published + difference, timm_name


@pytest.mark.parametrize(
    ("config", "published", "tolerance"),
    [
        (ModelConfig("deit3_s", pool="token"), 4.599e9, 0.0005),
        (ModelConfig("cait_xxs24"), 2.523e9, 0.0005),
        (ModelConfig("swin_t"), 4.491e9, 0.0005),
        (SO400M, 109.485e9, 0.0005),
        # timm counts the projection of the query, which is the same for all images.
        (replace(SO400M, pool="attention"), 110.178e9, 0.0005),
        (ModelConfig("mixer_s", patch_size=32), 1.002e9, 0.0005),
        (ModelConfig("mixer_b"), 12.602e9, 0.0005),
        # timm counts products with the zeros around an image, too.
        (ModelConfig("vgg16"), 15.470e9, 0.04),
        (ModelConfig("convnext_t"), 4.456e9, 0.01),
        (ModelConfig("convnext_b"), 15.355e9, 0.01),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_number_of_multiplications_is_that_of_timm(config, published, tolerance):
    """For one image of 224x224, of convolutions and matrix products."""
    model = registry.create(config, *IMAGENET, 16)
    state = jax.eval_shape(model.init, jax.random.key(0))

    def forward(params, batch_stats, image):
        return model.network(params, batch_stats)(image, train=False)

    # The second image adds no products of parameters alone.
    images = (jax.ShapeDtypeStruct((number, *IMAGENET[0]), jnp.float32) for number in (1, 2))
    one, two = (flops(forward, *state, image) for image in images)
    assert (two - one) / 2 == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize("name", ALL_NETWORKS)
def test_parameters_are_float32_and_no_large_one_is_whole_on_a_device(name, set_mesh):
    """Except kernels of PyramidNets whose dimensions are all odd."""
    set_mesh(fsdp=4, tensor=1 if name == "vit_ti" else 2)  # 3 heads do not divide over 2 devices.
    leaves = leaves_of(ModelConfig(name, dtype="bfloat16"), *IMAGENET)
    whole = [
        leaf.shape
        for leaf in leaves
        if math.prod(leaf.shape) >= 2**16 and not any(leaf.sharding.spec) and any(dim % 2 == 0 for dim in leaf.shape)
    ]
    assert not whole
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


def test_pyramidnets_refuse_images_that_cannot_be_halved_twice():
    with pytest.raises(ConfigError, match="halves images twice, which 30x32 does not allow"):
        registry.create(ModelConfig("pyramidnet_110_48"), (30, 32, 3), 10, 16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig("vit_bb"), "did you mean vit_b? choose one of vit_mu, vit_ti"),
        (ModelConfig("alexnet"), "model.name is alexnet, which is not a known network: choose one of"),
        (ModelConfig("vit_mu", patch_size=5), "model.patch_size is 5, which does not divide images of 224x224"),
        (ModelConfig("vit_mu", num_heads=5), "5 attention heads do not divide a width of 32"),
        (ModelConfig("vit_mu", num_bn_groups=2), "model.num_bn_groups is 2, which vit_mu does not use"),
        (ModelConfig("vgg16", scan_layers=True), "model.scan_layers is True, which vgg16 does not use"),
        (ModelConfig("resnet50", attention="xla"), "model.attention is xla, which resnet50 does not use"),
        (ModelConfig("resnet50", dropout=0.1), "model.dropout is 0.1, which resnet50 does not use"),
        (ModelConfig("vit_ti", num_heads=32, position="rope"), "multiple of 4, and these have 6: change model.width"),
        (ModelConfig("vit_ti", width=30, position="sincos2d"), "width of 8, 12, 16, ... and this is 30: change"),
        (ModelConfig("cait_s24", num_registers=1), "model.num_registers is 1, which cait_s24 does not use"),
        (ModelConfig("mixer_b", rep_layer=True), "model.rep_layer is True, which mixer_b does not use"),
        (ModelConfig("swin_t", patch_size=4), "model.patch_size is 4, which swin_t does not use"),
        (ModelConfig("wrn_16_4", stem="cifar"), "model.stem is cifar, which wrn_16_4 does not use"),
        (ModelConfig("shake_shake_26_2x32d", shake_drop=0.5), "model.shake_drop is 0.5, which shake_shake_26_2x32d"),
        (ModelConfig("pyramidnet_110_48", shake_gradient="consistent"), "has no effect without ShakeDrop"),
    ],
)
def test_create_refuses_in_one_line(config, message):
    with pytest.raises(ConfigError) as error:
        registry.create(config, *IMAGENET, 16)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vgg16_bn", "convnext_t"])
def test_images_of_which_nothing_would_remain_are_refused(name):
    registry.create(ModelConfig(name), (32, 32, 3), 10, 16)
    with pytest.raises(ConfigError, match=f"{name} .* images of 40x31 are too small, choose another network"):
        registry.create(ModelConfig(name), (40, 31, 3), 10, 16)


def test_swin_refuses_images_that_do_not_divide_into_its_windows():
    with pytest.raises(ConfigError, match="multiples of 32, and these are 224x200: change"):
        registry.create(ModelConfig("swin_t"), (224, 200, 3), 1000, 16)


def test_heads_must_divide_over_the_tensor_axis(set_mesh):
    model = registry.create(ModelConfig("vit_ti"), *IMAGENET, 16)
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)

    def forward(params, batch_stats, image):
        return model.network(params, batch_stats)(image, train=False)

    state = jax.eval_shape(model.init, jax.random.key(0))
    jax.eval_shape(forward, *state, image)  # Without a mesh it runs; its cache must not hide the error below.
    set_mesh(tensor=2)
    with pytest.raises(ConfigError, match="3 attention heads do not divide over the tensor axis of 2"):
        jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ConfigError, match="3 attention heads do not divide over the tensor axis of 2"):
        jax.eval_shape(forward, *state, image)


@pytest.mark.parametrize(
    ("num_bn_groups", "num_examples", "message"),
    [
        (1, 12, "a batch of 12 examples does not divide over 8 devices"),
        (2, 8, "8 examples of one pass do not divide into groups of 6"),
    ],
)
def test_batches_must_divide_over_devices_and_groups(num_bn_groups, num_examples, message, set_mesh):
    set_mesh(fsdp=4, tensor=2)
    model = registry.create(ModelConfig("resnet18", num_bn_groups=num_bn_groups), *CIFAR10, 12)
    state = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((num_examples, 32, 32, 3), jnp.float32)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(lambda params, stats, image: model.network(params, stats)(image, train=True), *state, image)


def test_overriding_the_width_makes_the_mlp_four_times_as_wide():
    config = ModelConfig("vit_mu", width=48, depth=3, num_heads=4)
    model = registry.create(config, *CIFAR10, 16)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    assert list(params["blocks"]) == ["00", "01", "02"]
    assert params["blocks"]["02"]["mlp"]["in_proj"]["kernel"].shape == (48, 192)
    assert params["blocks"]["02"]["attention"]["in_proj"]["kernel"].shape == (48, 3, 4, 12)
