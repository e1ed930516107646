"""Checkpoints: written whole behind training, trusted only when whole, and good only when training went on soundly."""

from gnp_scale.checkpoint.manager import Checkpoints
from gnp_scale.checkpoint.restore import fingerprint, load_newest

__all__ = ["Checkpoints", "fingerprint", "load_newest"]
