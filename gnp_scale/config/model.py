"""Section `model`: the network, and how it computes."""

from dataclasses import dataclass
from typing import Literal

from gnp_scale.checks import check, check_values

AttentionImplementation = Literal["auto", "xla", "cudnn", "pallas"]
Position = Literal["learned", "sincos2d", "rope"]
Remat = Literal["none", "dots", "block", "offload"]
"""In this order: each keeps less than the one before."""
_MOST = 1000
"""Blocks, or registers, of a transformer."""
ShakeGradient = Literal["published", "consistent"]


@dataclass(frozen=True)
class ModelConfig:
    """The network, and how it computes."""

    name: str = "vit_ti"
    """A name of `gnp_scale.models.registry`."""
    patch_size: int = 16
    pool: Literal["average", "token", "attention"] = "average"
    """The input of a vision transformer's classifier: the average over patches, a class token, or the result of a
    learned query that attends to the patches (MAP head). DeiT-III was published with a class token."""
    num_registers: int = 0
    """Learned tokens of a vision transformer that no classifier reads (arXiv 2309.16588)."""
    position: Position = "learned"
    """Where a vision transformer's patches are. "learned": a vector for each. "sincos2d": fixed sines and cosines,
    added like those. "rope": queries and keys are rotated, as in DINOv3 (arXiv 2508.10104)."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """Hidden layer of a vision transformer's MLP: GELU(x W), or SiLU(x V) * x W (arXiv 2002.05202) with as many hidden
    channels and so 1.5 times the parameters."""
    rep_layer: bool = False
    """Whether a vision transformer has a dense layer of its width with tanh before the classifier."""
    stem: Literal["cifar", "imagenet"] = "imagenet"
    """The first layer of a ResNet: a 3x3 convolution, or a 7x7 one with stride and max-pooling."""
    depth: int | None = None
    """Number of transformer blocks, instead of the one of the named network."""
    width: int | None = None
    """Channels of a transformer, instead of those of the named network."""
    num_heads: int | None = None
    head_bias: float = 0.0
    """Initial bias of the classifier; for a sigmoid loss the logarithm of a class's share, such as -6.9 for 1,000."""
    dropout: float = 0.0
    drop_path: float = 0.0
    """Probability that the last block is dropped; it rises linearly from 0 at the first. In DeiT-III and CaiT it is
    that of every block."""
    shake_drop: float = 0.0
    """Probability that ShakeDrop scales the last block of a PyramidNet at random; it is proportional to the number of
    the block. The published one is 0.5; 0 is no ShakeDrop."""
    shake_gradient: ShakeGradient = "published"
    """Random coefficients of Shake-Shake and ShakeDrop in a backward pass. "published": drawn anew, so that the result
    is not the gradient of any function. "consistent": those of the forward pass, so that it is the gradient of the
    loss. In both cases, all passes of a step have the same coefficients."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the network computes; the parameters are float32."""
    attention: AttentionImplementation = "auto"
    """What computes the attention of a transformer. "auto" is Pallas kernels on TPUs, and in bfloat16 cuDNN on
    GPUs, where they take the size; else it is XLA."""
    remat: Remat = "none"
    """Which activations the backward pass computes again, to save memory. "none": those that XLA does not keep. "dots":
    all but results of matrix products, convolutions and attention. "block": all but the input of each block.
    "offload": as "block", and the inputs are in the memory of the host until they are needed."""
    sequence_parallel: bool = False
    """Shard the tokens of a vision transformer over `mesh.tensor` where its channels are not sharded: norms, residuals
    and dropout then take 1 / tensor of the memory (arXiv 2205.05198)."""
    scan_layers: bool = False
    """Stack equal transformer blocks and scan over them: compile time does not grow with depth."""
    init_from: str = ""
    """A file of pretrained weights, .safetensors or .npz, from which a new run takes its initial parameters
    (docs/weights.md). Empty: they are random."""
    init_allow: tuple[str, ...] = ()
    """Patterns of names of tensors that may be missing in the file of `init_from`, unused, or of another shape, such as
    "head.*". The parameters for which it has none keep their random values."""
    num_bn_groups: int = 1
    """Number of groups of consecutive examples of the global batch, each with its own batch statistics. Statistics over
    several devices cost each layer one all-reduce in every forward and every backward pass. A multiple of
    the number of devices (times the number of microbatches) needs none."""

    def __post_init__(self) -> None:
        check_values("model", self)
        for name in ("patch_size", "num_bn_groups"):
            value = getattr(self, name)
            check(value >= 1, f"model.{name} is {value}: it must be at least 1")
        check(self.num_registers >= 0, f"model.num_registers is {self.num_registers}: it must be at least 0")
        for name in ("num_registers", "depth"):
            value = getattr(self, name) or 0
            check(value <= _MOST, f"model.{name} is {value}: it must be at most {_MOST}")
        for name in ("dropout", "drop_path", "shake_drop"):
            value = getattr(self, name)
            check(0 <= value < 1, f"model.{name} is {value}: it must be in [0, 1)")
        for name in ("depth", "width", "num_heads"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"model.{name} is {value}: it must be at least 1, or None")
        check(
            self.init_from != "" or not self.init_allow,
            f"model.init_allow is {' '.join(self.init_allow)} without a file: give model.init_from, or leave it out",
        )
