"""The methods that are compared: each is the plain configuration of a table, with other flags."""

import itertools
from dataclasses import dataclass

from gnp_scale.config import OptimConfig

type Point = tuple[tuple[str, float], ...]
"""Values of the options that are tuned, such as (("gnp.r", 0.1), ("optim.learning_rate", 0.05))."""

RADIUS, RATE = "gnp.r", "optim.learning_rate"
RADII = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Values of `gnp.r` that are tried for a method with a penalty."""
PENALISED_RATES = (0.25, 1.0)
"""Multiples of the table's learning rate that are tried with each radius."""
PLAIN_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
"""The same for plain training."""
PLAIN_DECAYS = (1.0, 5.0)
"""Multiples of the table's weight decay that are tried with each of them. So all methods have equally many points."""


@dataclass(frozen=True)
class Method:
    """A way to train."""

    flags: str = ""
    """Of `gnp-scale train`; without any it is plain training. `{warmup_steps}` is the table's `optim.warmup_steps`."""
    radius_factor: float = 1.0
    """Multiplies `RADII`, where the scale of the perturbation is another one."""
    step_factor: int = 1
    """Multiplies the number of steps."""

    def points(self, optim: OptimConfig) -> list[Point]:
        """The values that are tried, in order; `optim` is that of the table."""
        decay = "weight_decay" if optim.weight_decay else "l2_in_loss"
        if self.flags:
            grid = {
                RADIUS: [self.radius_factor * r for r in RADII],
                RATE: [factor * optim.learning_rate for factor in PENALISED_RATES],
            }
        else:
            grid = {
                RATE: [factor * optim.learning_rate for factor in PLAIN_RATES],
                f"optim.{decay}": [factor * getattr(optim, decay) for factor in PLAIN_DECAYS],
            }
        return [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


PLAIN, DOUBLE = "plain", "plain-2x"
"""The two methods with which all others are compared: at equal steps, and at the compute of two passes a step."""
BASELINES = {PLAIN: Method(), DOUBLE: Method(step_factor=2)}

METHODS = BASELINES | {
    "sam": Method("--gnp.alpha 1"),
    "gnp-0.8": Method("--gnp.alpha 0.8"),
    "gnp-0.6": Method("--gnp.alpha 0.6"),
    "gnp-0.4": Method("--gnp.alpha 0.4"),
    "late-50": Method("--gnp.alpha 1 --gnp.gate tail --gnp.gate-tail 0.5"),
    "late-20": Method("--gnp.alpha 1 --gnp.gate tail --gnp.gate-tail 0.2"),
    "every-2": Method("--gnp.alpha 1 --gnp.gate every --gnp.gate-every 2"),
    "bernoulli-0.5": Method("--gnp.alpha 1 --gnp.gate bernoulli --gnp.gate-probability 0.5"),
    # The range is this project's own: a momentum changes less from step to step than a gradient.
    "momentum": Method("--gnp.alpha 1 --gnp.direction momentum", radius_factor=10),
    # Its alpha weighs a direction as long as the gradient: with 1 no point of `noise40` learns (docs/evidence.md).
    "reused": Method("--gnp.alpha 1 --gnp.direction reused"),
    "reused-0.3": Method("--gnp.alpha 0.3 --gnp.direction reused"),
    "stale": Method("--gnp.alpha 1 --gnp.direction stale"),
    "friendly": Method("--gnp.alpha 1 --gnp.direction friendly"),
    # T is small, so r is larger (docs/method.md).
    "asam": Method("--gnp.alpha 1 --gnp.metric adaptive", radius_factor=10),
    "gsam": Method("--gnp.alpha 0.1 --gnp.blend gsam"),
}
"""All methods of the tables of one batch size and one network."""

SHORT = {name: METHODS[name] for name in (PLAIN, DOUBLE, "sam", "gnp-0.8")}
GATED = SHORT | {
    "sam-gated": Method("--gnp.alpha 1 --gnp.gate window --gnp.gate-start {warmup_steps}"),
    "gnp-0.8-gated": Method("--gnp.alpha 0.8 --gnp.gate window --gnp.gate-start {warmup_steps}"),
}
"""With and without the penalty in the warm-up of the learning rate (arXiv 2406.09723)."""

GROUPED_BATCH = 512
GROUPED = BASELINES | {
    f"sam-groups-of-{size}": Method(f"--gnp.alpha 1 --gnp.perturb-groups {GROUPED_BATCH // size}")
    for size in (16, 32, 128, 512)
}
"""By the number of examples to which a perturbation belongs, in batches of `GROUPED_BATCH`."""
