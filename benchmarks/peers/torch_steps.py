"""The same steps in PyTorch, in a separate environment: `python torch_steps.py MODEL BATCH CHANNELS_LAST`.

It makes one update for each line ("plain" or "penalised") on standard input, and prints the loss. It imports nothing
from the project.
"""

import itertools
import sys
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

R, ALPHA, NUM_CLASSES, IMAGE_SIZE = 0.05, 0.8, 10, 32


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` has examples, tokens and channels."""
        parts = self.in_proj(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attention = Attention(width, num_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` has examples, tokens and channels."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class ViT(nn.Module):
    """Vision transformer with the mean over tokens, by default ViT-Ti with patches of 4x4."""

    def __init__(
        self,
        width: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        patch: int = 4,
        image_size: int = IMAGE_SIZE,
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(num_channels, width, patch, patch)
        self.position = nn.Parameter(torch.randn((image_size // patch) ** 2, width) * width**-0.5)
        self.blocks = nn.Sequential(*(Block(width, num_heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` has examples, channels, height and width."""
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + two 3x3 convolutions of x)."""

    def __init__(self, num_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(num_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride != 1 or num_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(num_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` has examples, channels, height and width."""
        return functional.relu(self.shortcut(x) + self.layers(x))


def resnet18(num_channels: int = 3) -> nn.Module:
    """ResNet-18 with the stem for images of 32x32."""
    stem = nn.Sequential(nn.Conv2d(num_channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
    widths = (64, 64, 128, 256, 512)
    blocks = [
        block
        for stage, (num_in, width) in enumerate(itertools.pairwise(widths))
        for block in (BasicBlock(num_in, width, 1 + (stage > 0)), BasicBlock(width, width, 1))
    ]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, NUM_CLASSES))


def make_steps(model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int) -> dict[str, Callable[[], float]]:
    """An update with the gradient of a fixed batch, and one with (1 - a) g1 + a g2."""
    image = torch.randn(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE)
    label = torch.randint(NUM_CLASSES, (batch_size,))
    params = list(model.parameters())

    def gradient() -> tuple[float, list[torch.Tensor]]:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(image), label)
        loss.backward()
        return loss.item(), [w.grad for w in params if w.grad is not None]

    def plain() -> float:
        loss, _ = gradient()
        optimizer.step()
        return loss

    @torch.no_grad()
    def penalised() -> float:
        with torch.enable_grad():
            loss, g1 = gradient()
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(g1)))
        moves = torch._foreach_mul(g1, R / norm)
        torch._foreach_add_(params, moves)
        with torch.enable_grad():
            _, g2 = gradient()
        torch._foreach_sub_(params, moves)
        torch._foreach_mul_(g2, ALPHA)
        torch._foreach_add_(g2, g1, alpha=1 - ALPHA)
        optimizer.step()
        return loss

    return {"plain": plain, "penalised": penalised}


def main(name: str, batch_size: str, channels_last: str) -> None:
    """Makes one update for each line until standard input ends."""
    torch.manual_seed(0)
    model = ViT() if name == "vit" else resnet18()
    if channels_last == "True":
        model = model.to(memory_format=torch.channels_last)
    if name == "vit":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, nesterov=True)
    steps = make_steps(model, optimizer, int(batch_size))
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        print(steps[line.strip()](), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
