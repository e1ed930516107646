"""Augmentation inside the compiled step: random draws for each example from its own key.

`halves.py` has the order of the operations, and its two halves: bytes in `prepare`, float32 in `finish`.
"""

from gnp_scale.data.augment.halves import augment as augment
from gnp_scale.data.augment.halves import finish as finish
from gnp_scale.data.augment.halves import normalise as normalise
from gnp_scale.data.augment.halves import prepare as prepare
