"""Epochs in PyTorch, with its `DataLoader`: `python torch_epochs.py FOLDER KIND`; KIND is "plain" or "SAM".

It needs PyTorch and NumPy, in an environment of its own.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from epoch_setting import NUM_WARM_UP_STEPS, Setting, serve
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torch_steps import ViT, resnet18


class Sam:
    """SAM around another optimizer, in the usual form: two calls, each after a backward pass (arXiv 2010.01412)."""

    def __init__(self, base: torch.optim.Optimizer, radius: float) -> None:
        self.base, self.radius, self.old = base, radius, []
        self.params = [w for group in base.param_groups for w in group["params"]]

    @torch.no_grad()
    def first_step(self) -> None:
        """Moves the parameters to w + r g / ||g||."""
        norm = torch.norm(torch.stack([w.grad.norm() for w in self.params]))
        self.old = [w.clone() for w in self.params]
        for w in self.params:
            w.add_(w.grad, alpha=self.radius / (norm.item() + 1e-12))
        self.base.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        """Moves them back, and updates them with the gradient of there."""
        for w, old in zip(self.params, self.old, strict=True):
            w.copy_(old)
        self.base.step()
        self.base.zero_grad()


class Loop:
    """Network, optimizer and data."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.setting = setting = Setting.read(folder)
        image = torch.from_numpy(np.load(folder / "image.npy")).permute(0, 3, 1, 2).contiguous()
        label = torch.from_numpy(np.load(folder / "label.npy")).long()
        self.loader = DataLoader(TensorDataset(image, label), setting.batch_size, shuffle=True, drop_last=True)
        self.mean, self.std = (torch.tensor(x).view(1, -1, 1, 1) for x in (setting.mean, setting.std))
        self.model = make_model(setting)
        num_parameters = sum(w.numel() for w in self.model.parameters())
        assert num_parameters == setting.num_parameters, num_parameters
        base = make_optimizer(setting, self.model)
        self.update = self.sam(Sam(base, setting.radius)) if kind == "SAM" else self.plain(base)

    def plain(self, optimizer: torch.optim.Optimizer) -> Callable[..., torch.Tensor]:
        """An update with the gradient."""

        def update(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(self.model(x), label)
            loss.backward()
            optimizer.step()
            return loss

        return update

    def sam(self, optimizer: Sam) -> Callable[..., torch.Tensor]:
        """An update of SAM."""

        def update(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            loss = functional.cross_entropy(self.model(x), label)
            loss.backward()
            optimizer.first_step()
            functional.cross_entropy(self.model(x), label).backward()
            optimizer.second_step()
            return loss

        return update

    def run(self, num_steps: int) -> float:
        """Trains on so many batches of a new order; returns the last loss."""
        loss = torch.zeros(())
        for number, (image, label) in enumerate(self.loader, 1):
            loss = self.update((image / 255.0 - self.mean) / self.std, label)
            if number == num_steps:
                break
        return loss.item()


def make_model(setting: Setting) -> nn.Module:
    """The network of the setting."""
    if setting.model == "resnet18":
        return resnet18(setting.num_channels)
    sizes = setting.width, setting.depth, setting.num_heads, setting.patch_size
    return ViT(*sizes, setting.image_size, setting.num_channels)


def make_optimizer(setting: Setting, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the setting."""
    if setting.model == "vit":
        return torch.optim.AdamW(model.parameters(), setting.learning_rate, weight_decay=setting.weight_decay)
    return torch.optim.SGD(model.parameters(), setting.learning_rate, setting.momentum, nesterov=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    loop = Loop(Path(sys.argv[1]), sys.argv[2])
    serve(lambda: loop.run(NUM_WARM_UP_STEPS), lambda: loop.run(loop.setting.num_steps))
