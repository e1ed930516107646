"""Which of the examples of a data set are trained on and evaluated, and with which labels.

N examples of a split, K classes.
"""

from dataclasses import replace

import numpy as np

from gnp_scale.config import DataConfig, check
from gnp_scale.data.dataset import Dataset, Split

HOLDOUT = "holdout"
"""The name of the part of the training split that `data.holdout` keeps for evaluation."""


def parts_of(dataset: Dataset, train: Split, test: Split, config: DataConfig) -> Dataset:
    """A small `dataset`, with the part of its split `train` that `config` trains on, and the split that it evaluates.

    First `num_examples` are drawn, then labels are replaced, and then a part is held out: it has wrong labels too, as a
    part of a real noisy set would. The split `train` is the examples that are trained on, with their labels.

    Raises:
        ConfigError: there are not so many examples or classes, or there is no such split.
    """
    given = _chosen(train, drawn(len(train), config))
    if config.label_noise:
        shift_N = label_shifts(len(given), dataset.num_classes, config)
        given = replace(given, label=(given.label + shift_N) % dataset.num_classes)
    train_ids, holdout_ids = held_out(len(given), config.holdout)
    splits = {"train": _chosen(given, train_ids), "test": test}
    if config.holdout:
        splits[HOLDOUT] = _chosen(given, holdout_ids)
    name = config.eval_split or (HOLDOUT if config.holdout else "test")
    hint = "; for a part of the training examples set data.holdout" * (name == HOLDOUT)
    check(
        name in splits,
        f"data.eval_split is {name!r}, which {dataset.name} does not have: give {' or '.join(splits)}{hint}",
    )
    check_holdout(config, len(given), len(splits["train"]), len(splits[name]))
    return replace(dataset, train=splits["train"], test=splits[name])


def check_holdout(config: DataConfig, num_examples: int, num_trained: int, num_evaluated: int) -> None:
    """Raises ConfigError if `data.holdout` leaves no example for training, or none for evaluation."""
    for what, number in (("trains", num_trained), ("evaluates", num_evaluated)):
        check(number > 0, f"data.holdout {config.holdout} of {num_examples} examples {what} on none: change it")


def held_out(num_examples: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the examples that remain for training, and of those held out.

    These are evenly spaced in the order of the data set: example i is held out if floor((i + 1) * share) is greater
    than floor(i * share). In a set that is sorted by class, each class has its part.
    """
    edge = np.floor(np.arange(num_examples + 1) * share)
    is_held_out = np.diff(edge) > 0
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def drawn(num_examples: int, config: DataConfig) -> np.ndarray:
    """Numbers of the examples that `config` draws: all in order, or different ones in random order.

    Raises:
        ConfigError: there are not so many.
    """
    number = config.num_examples
    if number is None:
        return np.arange(num_examples)
    check(number <= num_examples, f"data.num_examples is {number}, but {config.name} has {num_examples}: lower it")
    return _random(config, 0).choice(num_examples, number, replace=False)


def label_shifts(num_examples: int, num_classes: int, config: DataConfig) -> np.ndarray:
    """What is added to each label, modulo `num_classes` (int32 N): symmetric noise.

    A random share `label_noise` of them, rounded to a whole number, becomes one of the other classes. All of these
    are equally probable, so each of the chosen labels is wrong (as in arXiv 1804.06872).

    Raises:
        ConfigError: there is but one class.
    """
    check(num_classes > 1, f"data.label_noise is {config.label_noise}, but {config.name} has one class: set it to 0")
    random, shift_N = _random(config, 1), np.zeros(num_examples, np.int32)
    chosen = random.choice(num_examples, round(config.label_noise * num_examples), replace=False)
    shift_N[chosen] = random.integers(1, num_classes, len(chosen))
    return shift_N


def _random(config: DataConfig, purpose: int) -> np.random.Generator:
    """Other numbers for each purpose, so that the same examples are drawn with and without noise."""
    return np.random.default_rng([config.draw_seed, purpose])


def _chosen(split: Split, ids: np.ndarray) -> Split:
    """The examples `ids`; the split itself if these are all in order."""
    if len(ids) == len(split) and np.array_equal(ids, np.arange(len(split))):
        return split
    return replace(split, image=split.image[ids], label=split.label[ids])
