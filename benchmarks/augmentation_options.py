"""Random operations on images: their time in the step and with Pillow on the host, and estimates for a TPU.

Command: python -m benchmarks.augmentation_options [--rounds N]. The estimates need libtpu (`make tpu-compiler`).
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from gnp_kernels.timing import interleave, ratio
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks.timing import write_report
from benchmarks.tpu_estimates import CHIPS, Xla
from gnp_scale.config import DataConfig, MeshConfig
from gnp_scale.data.augment import prepare
from gnp_scale.data.augment.operations import SIGNED
from gnp_scale.data.augment.policies import RANDAUGMENT, magnitude
from gnp_scale.mesh import batch_spec, make_mesh, sharding

SIZES = {32: 128, 224: 16}
"""Side of an image, and number of images of a batch."""
LEVEL = 9
OPTIONS = {
    "crop and flip": DataConfig(crop_padding=4, flip=True),
    "RandAugment, 2 operations": DataConfig(policy="randaugment"),
    "RandAugment, 1 operation": DataConfig(policy="randaugment", randaugment_num_ops=1),
    "AutoAugment": DataConfig(policy="autoaugment_imagenet"),
    "three-augment": DataConfig(policy="three_augment"),
    "brightness, contrast, saturation": DataConfig(brightness=0.3, contrast=0.3, saturation=0.3),
    "brightness": DataConfig(brightness=0.3),
    "hue": DataConfig(hue=0.1),
}
RANDOM = np.random.default_rng(0)


def main() -> None:
    """Times, estimates, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    num_rounds = parser.parse_args().rounds
    lines = [
        "Command: `python -m benchmarks.augmentation_options`.",
        "",
        f"Medians over {num_rounds} rounds, which alternate between the two in one process; the ratio is that within a",
        "round, with quartiles. Each draws an operation for each image. The step runs in a loop over images, as on",
        "every CPU, and starts from bytes on the device. Pillow runs in one thread.",
        "",
        "| option | side | in the step, us per image | Pillow, us per image | Pillow / step |",
        "|---|---|---|---|---|",
        *(timed(name, on_host, side, num_rounds) for side in SIZES for name, on_host in ON_HOST.items()),
        "",
        "Estimates of the TPU compiler for one v5e core, not measurements: cycles of all loops, each counted once.",
        "A loop over operations or pixels runs more often, so these are lower bounds where there is one.",
        "",
        "| option | side | cycles per image | us per image at 1.5 GHz | loops |",
        "|---|---|---|---|---|",
        *(line for side in SIZES for line in estimates(side)),
    ]
    write_report("augmentation-options", "Random operations in the step and on the host", lines)


def timed(name: str, on_host: Callable[[Image.Image], Image.Image], side: int, num_rounds: int) -> str:
    """One line of the first table."""
    num_images = SIZES[side]
    image_BxHxWxC = photographs(side)
    batch = {
        "image": jnp.array(image_BxHxWxC),
        "label": jnp.zeros(num_images, jnp.int32),
        "key": jax.random.split(jax.random.key(0), num_images),
    }
    compiled = jax.jit(partial(prepare, config=OPTIONS[name]))
    seconds = interleave(
        {
            "step": lambda: compiled(batch),
            "host": lambda: [np.asarray(on_host(Image.fromarray(image))) for image in image_BxHxWxC],
        },
        num_rounds,
    )
    step_us, host_us = (statistics.median(seconds[place]) * 1e6 / num_images for place in ("step", "host"))
    return f"| {name} | {side} | {step_us:.1f} | {host_us:.1f} | {ratio(seconds, 'host', 'step')} |"


def estimates(side: int) -> list[str]:
    """The lines of the second table for one size."""
    chip = CHIPS["v5e"]
    os.environ.update(chip.environment(Path(tempfile.mkdtemp())))
    with jax.set_mesh(make_mesh(MeshConfig(), chip.devices()[:1])):
        return [estimated(name, side, chip.clock_hz) for name in OPTIONS]


def estimated(name: str, side: int, clock_hz: float) -> str:
    """One line of the second table; on the current mesh."""
    num_images = SIZES[side]
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_images))
    shapes = {"image": ((num_images, side, side, 3), jnp.uint8), "label": ((num_images,), jnp.int32)}
    shapes["key"] = (keys.shape, keys.dtype)
    batch = {
        entry: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(batch_spec(len(shape))))
        for entry, (shape, dtype) in shapes.items()
    }
    text = jax.jit(partial(prepare, config=OPTIONS[name])).lower(batch).compile().as_text()
    assert text is not None
    cycles = Xla.of(text).cycles / num_images
    return f"| {name} | {side} | {cycles:,.0f} | {cycles / clock_hz * 1e6:.1f} | {text.count(' while(')} |"


def photographs(side: int) -> np.ndarray:
    """Smooth random images (uint8 B x H x W x 3)."""
    small = RANDOM.integers(0, 256, (SIZES[side], 8, 8, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side))) for image in small])


def randaugment(image: Image.Image, num_ops: int) -> Image.Image:
    """RandAugment with Pillow."""
    for name in RANDOM.choice(RANDAUGMENT, num_ops):
        x = magnitude(name, LEVEL, 31, image.height, image.width)
        image = _operation(image, name, -x if name in SIGNED and RANDOM.random() < 0.5 else x)
    return image


def _operation(image: Image.Image, name: str, x: float) -> Image.Image:
    matrices = {
        "ShearX": (1, x, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, x, 1, 0),
        "TranslateX": (1, 0, -int(x), 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, -int(x)),
    }
    if name in matrices:
        return image.transform(image.size, Image.Transform.AFFINE, matrices[name], Image.Resampling.NEAREST)
    operations = {
        "Identity": lambda: image,
        "Rotate": lambda: image.rotate(x),
        "Posterize": lambda: ImageOps.posterize(image, int(x)),
        "Solarize": lambda: ImageOps.solarize(image, int(x)),
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
    }
    return operations[name]() if name in operations else getattr(ImageEnhance, name)(image).enhance(1 + x)


def three_augment(image: Image.Image) -> Image.Image:
    """Three-augment with Pillow."""
    operations = (
        lambda: image.convert("L").convert("RGB"),
        lambda: ImageOps.solarize(image),
        lambda: image.filter(ImageFilter.GaussianBlur(RANDOM.uniform(0.1, 2))),
    )
    return operations[RANDOM.integers(3)]()


def jitter(image: Image.Image) -> Image.Image:
    """Colour jitter with Pillow."""
    for name in RANDOM.permutation(["Brightness", "Contrast", "Color"]):
        image = getattr(ImageEnhance, name)(image).enhance(RANDOM.uniform(0.7, 1.3))
    return image


def turn_hue(image: Image.Image) -> Image.Image:
    """A random hue with Pillow and NumPy."""
    hue, *others = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(RANDOM.integers(-25, 26) % 256)
    return Image.merge("HSV", (Image.fromarray(turned), *others)).convert("RGB")


ON_HOST = {
    "RandAugment, 2 operations": partial(randaugment, num_ops=2),
    "three-augment": three_augment,
    "brightness, contrast, saturation": jitter,
    "hue": turn_hue,
}


if __name__ == "__main__":
    main()
