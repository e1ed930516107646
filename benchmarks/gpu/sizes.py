"""Sizes of what is measured; with GPU_CHECK_TINY, those that try the scripts on any machine."""

import os

import jax

TINY = "GPU_CHECK_TINY" in os.environ
MODELS = ("vit_b", "resnet50")
BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES = (8, 32, 10) if TINY else (256, 224, 1000)
NUM_ROUNDS = 2 if TINY else 8
STEPS_AT_ONCE = 3
R, ALPHA, CLIP_NORM, DECAY = 0.05, 0.8, 1.0, 0.1


def on_gpu() -> bool:
    """Whether JAX computes on a GPU."""
    return jax.default_backend() == "gpu"
