"""Which checkpoints are kept."""

import math
from collections.abc import Collection, Mapping

from gnp_scale.config import CheckpointConfig

type Scores = Mapping[str, float]


def kept(
    steps: Collection[int], good: Collection[int], scores: Mapping[int, Scores], config: CheckpointConfig
) -> set[int]:
    """The steps to keep of those whose checkpoints are committed.

    The newest `keep_last` that are good, and beside these the newest `keep_last` of the others: what has not passed the
    health gate cannot take the place of what has. Also the one that is next to pass, since with frequent saves it is
    not among the newest any more by then. Then milestones, and the best by score.
    """
    good, others = sorted(set(steps) & set(good)), sorted(set(steps) - set(good))
    next_to_pass = [step for step in others if step > max(good, default=0)][:1]
    every = config.keep_every_steps
    milestones = [step for step in steps if every is not None and step % every == 0]
    ranked = sorted((step for step in steps if step in scores), key=lambda step: (score(config, scores[step]), step))
    best = ranked[-config.keep_best :] if config.keep_best else []
    return {*good[-config.keep_last :], *others[-config.keep_last :], *next_to_pass, *milestones, *best}


def score(config: CheckpointConfig, scores: Scores) -> float:
    """How good an evaluation was; the higher, the better."""
    value = scores[config.best_metric]
    if not math.isfinite(value):
        return -math.inf
    return -value if config.best_metric == "eval/loss" else value
