"""Checkpoints: written during training, used only if every byte is right, and good only after healthy steps."""

from gnp_scale.checkpoint.manager import Checkpoints
from gnp_scale.checkpoint.restore import fingerprint, has_checkpoints, load_newest, load_whole

__all__ = ["Checkpoints", "fingerprint", "has_checkpoints", "load_newest", "load_whole"]
