"""Fused arithmetic for training with a penalty on the gradient norm: norms, perturbation, and blend with update.

There are four operations on trees of arrays, each in plain JAX (`xla`), as Triton kernels for GPUs and as Pallas
kernels for TPUs; `kernels/README.md` has their formulas. They need only JAX, and fit any training loop.
"""

from gnp_kernels.blend_update.api import AdamW, Sgd, Updated, blend_update
from gnp_kernels.dispatch import Implementation, UnsupportedError
from gnp_kernels.perturb.api import perturb
from gnp_kernels.squared_norm.api import Dots, dots, squared_norm

__all__ = [
    "AdamW",
    "Dots",
    "Implementation",
    "Sgd",
    "UnsupportedError",
    "Updated",
    "blend_update",
    "dots",
    "perturb",
    "squared_norm",
]
