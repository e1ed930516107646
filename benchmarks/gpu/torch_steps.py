"""The same steps in PyTorch: timm's ViT-B/16 and ResNet-50 in bfloat16, eager and compiled, plain and penalised.

Command: python benchmarks/gpu/torch_steps.py. It imports nothing of the project, so that any environment with PyTorch
and timm runs it.
"""

import os
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import nn

TINY = "GPU_CHECK_TINY" in os.environ
BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES = (8, 32, 10) if TINY else (256, 224, 1000)
NUM_ROUNDS = 2 if TINY else 8
R, ALPHA, CLIP_NORM, DECAY = 0.05, 0.8, 1.0, 0.1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Forward = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    """Prints a row for each model, eager and compiled."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    print("| model | PyTorch | plain images/s | penalised images/s | penalised / plain |\n" + "|---" * 5 + "|")
    for name in ("vit_b", "resnet50"):
        network = make_network(name)
        for title in ("eager",) if TINY else ("eager", "compiled"):
            plain, penalised = make_steps(network, network if title == "eager" else torch.compile(network), name)
            seconds_of(plain, 2), seconds_of(penalised, 2)
            medians = [statistics.median(seconds_of(step, 3) for _ in range(NUM_ROUNDS)) for step in (plain, penalised)]
            rates = " | ".join(f"{BATCH_SIZE / median_s:.0f}" for median_s in medians)
            print(f"| {name} | {title} | {rates} | {medians[1] / medians[0]:.2f} |", flush=True)


def make_network(name: str) -> nn.Module:
    """timm's network with the parameters of the project's own."""
    if name == "resnet50":
        network = timm.create_model("resnet18" if TINY else "resnet50", num_classes=NUM_CLASSES)
        return network.to(DEVICE, memory_format=torch.channels_last)
    size = {"img_size": IMAGE_SIZE, "embed_dim": 32, "depth": 1, "num_heads": 2} if TINY else {}
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": NUM_CLASSES}
    return timm.create_model("vit_base_patch16_224", **options, **size).to(DEVICE)


def make_steps(network: nn.Module, forward: Forward, name: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """An update with the gradient, and one with (1 - a) g1 + a g2, of a fixed batch of uint8 images."""
    params = list(network.parameters())
    options = {"fused": DEVICE == "cuda", "weight_decay": DECAY}
    if name == "vit_b":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(params, 1e-4, **options)
    else:
        optimizer = torch.optim.SGD(params, 1e-3, momentum=0.9, nesterov=True, **options)
    image = torch.randint(256, (BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, device=DEVICE)
    label = torch.randint(NUM_CLASSES, (BATCH_SIZE,), device=DEVICE)
    memory_format = torch.contiguous_format if name == "vit_b" else torch.channels_last

    def gradient() -> list[torch.Tensor]:
        for w in params:
            w.grad = None
        x = ((image.float() / 255 - 0.5) / 0.25).contiguous(memory_format=memory_format)
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = nn.functional.cross_entropy(forward(x).float(), label)
        loss.backward()
        return [w.grad for w in params]

    @torch.no_grad()
    def update(gradients: list[torch.Tensor]) -> None:
        for w, g in zip(params, gradients, strict=True):
            w.grad = g
        nn.utils.clip_grad_norm_(params, CLIP_NORM)
        optimizer.step()

    def plain() -> None:
        update(gradient())

    def penalised() -> None:
        g1 = gradient()
        with torch.no_grad():
            saved = [w.clone() for w in params]
            scale = R / torch.linalg.vector_norm(torch.stack(torch._foreach_norm(g1)))
            torch._foreach_add_(params, torch._foreach_mul(g1, scale))
        g2 = gradient()
        with torch.no_grad():
            torch._foreach_copy_(params, saved)
            torch._foreach_lerp_(g2, g1, 1 - ALPHA)
        update(g2)

    return plain, penalised


def seconds_of(step: Callable[[], None], num_steps: int) -> float:
    """Seconds of one of `num_steps` steps, until the device has computed them."""
    start_s = time.perf_counter()
    for _ in range(num_steps):
        step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start_s) / num_steps


if __name__ == "__main__":
    main()
