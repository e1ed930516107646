"""What an epoch consists of, the same for all that are compared. It needs no library: PyTorch's environment has few.

The folder of a comparison holds `setting.json`, and the training images as `image.npy` (uint8, examples x height x
width x channels) and `label.npy` (int32).
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

NUM_WARM_UP_STEPS = 3
"""They compile, and are not measured."""


@dataclass(frozen=True)
class Setting:
    """Data, network and optimizer."""

    data: str
    num_examples: int
    batch_size: int
    image_size: int
    num_channels: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model: str
    """`vit` or `resnet18`."""
    patch_size: int
    depth: int
    width: int
    num_heads: int
    """Of the transformer."""
    num_parameters: int = 0
    """Each network must have as many."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    """The transformer has AdamW, which decays all parameters; the other network has SGD without decay."""
    momentum: float = 0.9
    """Nesterov's."""
    radius: float = 0.05

    @property
    def num_steps(self) -> int:
        """Of an epoch; the examples that are left are in the next one."""
        return self.num_examples // self.batch_size

    def write(self, folder: Path) -> None:
        """Puts it where the processes read it."""
        (folder / "setting.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> "Setting":
        """What `write` wrote."""
        return cls(**json.loads((folder / "setting.json").read_text()))


def serve(warm_up: Callable[[], object], epoch: Callable[[], float]) -> None:
    """Trains an epoch for each line of standard input, and prints the loss of its last step."""
    warm_up()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(epoch(), flush=True)
