"""Checkpoints: written during training, used only if every byte is right, and good only after healthy steps."""

from gnp_scale.checkpoint.average import load_average, load_whole_average
from gnp_scale.checkpoint.manager import Checkpoints
from gnp_scale.checkpoint.restore import has_checkpoints, load_each, load_newest, stored_shapes
from gnp_scale.checkpoint.whole import fingerprint, load_whole

__all__ = [
    "Checkpoints",
    "fingerprint",
    "has_checkpoints",
    "load_average",
    "load_each",
    "load_newest",
    "load_whole",
    "load_whole_average",
    "stored_shapes",
]
