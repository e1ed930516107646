"""Which checkpoints are kept."""

import math
from collections.abc import Collection, Mapping

from gnp_scale.config import CheckpointConfig

type Scores = Mapping[str, float]


def kept(
    steps: Collection[int], good: Collection[int], scores: Mapping[int, Scores], config: CheckpointConfig
) -> set[int]:
    """The committed steps to keep.

    These are the newest `keep_last` good ones, and the newest `keep_last` others: a checkpoint that has not passed the
    health gate cannot replace one that has. Also the next one to pass, because with frequent saves it is no longer
    among the newest when it passes. Then milestones, and the best by score.
    """
    good, others = sorted(set(steps) & set(good)), sorted(set(steps) - set(good))
    next_to_pass = [step for step in others if step > max(good, default=0)][:1]
    every = config.keep_every_steps
    milestones = [step for step in steps if every is not None and step % every == 0]
    ranked = sorted((step for step in steps if step in scores), key=lambda step: (score(config, scores[step]), step))
    best = ranked[-config.keep_best :] if config.keep_best else []
    return {*good[-config.keep_last :], *others[-config.keep_last :], *next_to_pass, *milestones, *best}


def score(config: CheckpointConfig, scores: Scores) -> float:
    """The score of an evaluation; higher is better."""
    value = scores[config.best_metric]
    if not math.isfinite(value):
        return -math.inf
    return -value if config.best_metric == "eval/loss" else value
