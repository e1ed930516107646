"""The configuration: frozen dataclasses with their checks, built by Python functions and overridden by typed flags.

A recipe is a function without arguments in a file, named `file.py:function`, that returns a `Config`; `recipe.py`
loads it, applies the flags, and writes and reads configurations as JSON.
"""

from dataclasses import dataclass, field

from gnp_scale.checks import ConfigError as ConfigError
from gnp_scale.checks import check as check
from gnp_scale.config.data import DataConfig
from gnp_scale.config.gnp import GnpConfig
from gnp_scale.config.model import ModelConfig
from gnp_scale.config.optim import OptimConfig
from gnp_scale.config.run import CheckpointConfig, DivergenceConfig, MeshConfig, TrainConfig


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on, apart from the machine."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    gnp: GnpConfig = field(default_factory=GnpConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check(
            self.train.gradient_dtype in ("float32", self.model.dtype),
            f"train.gradient_dtype is {self.train.gradient_dtype} with model.dtype {self.model.dtype}: "
            "gradients must not be narrower than the type of the model; set model.dtype bfloat16 as well",
        )
        self._check_schedules()
        check(
            not (self.model.scan_layers and self.optim.name in ("lamb", "lars")),
            f"model.scan_layers stacks blocks into one array, which {self.optim.name} would give one trust ratio: "
            "turn it off, or use another optim.name",
        )
        for name, value in {
            "model.num_bn_groups": self.model.num_bn_groups,
            "gnp.perturb_groups": self.gnp.perturb_groups,
            "train.accumulate_steps": self.train.accumulate_steps,
        }.items():
            check(
                self.data.batch_size % value == 0,
                f"data.batch_size {self.data.batch_size} is not divisible by {name} {value}: change one of them",
            )
        parts, groups = self.train.accumulate_steps, self.gnp.perturb_groups
        check(
            parts % groups == 0 or groups % parts == 0,
            f"train.accumulate_steps {parts} and gnp.perturb_groups {groups}: one must divide the other",
        )

    def _check_schedules(self) -> None:
        num_steps = self.train.num_steps
        # With `gate_stop`, the window may begin after the last step. Some existing run folders have this.
        gate_start = self.gnp.gate_start if self.gnp.gate_stop is None else 0
        schedules = (
            ("optim.warmup_steps", self.optim.warmup_steps, num_steps),
            ("gnp.warmup_steps", self.gnp.warmup_steps, num_steps),
            ("gnp.gate_start", gate_start, num_steps - 1),
        )
        late = [(name, value, largest) for name, value, largest in schedules if value > largest]
        given = " and ".join(f"{name} {value}" for name, value, _ in late)
        flags = " and ".join(f"--{name.replace('_', '-')} N (at most {largest})" for name, _, largest in late)
        check(
            not late, f"train.num_steps {num_steps} is too small for {given}: add {flags}, or raise --train.num-steps"
        )
