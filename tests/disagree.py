"""A recipe that differs between processes: `GNP_SCALE_TEST_DISAGREE` says how."""

import os

import stuck

from gnp_scale.config import Config, TrainConfig
from gnp_scale.run import agreement, run_dir
from gnp_scale.run.budgets import VARIABLE


def small() -> Config:
    """Other options or another run folder in each process, or another version or other budgets in process 1."""
    rank = int(os.environ["JAX_PROCESS_ID"])
    if os.environ["GNP_SCALE_TEST_DISAGREE"].startswith("/"):
        # As if each had its own disk at the same path.
        os.chdir(f"{os.environ['GNP_SCALE_TEST_DISAGREE']}/{rank}")
        run_dir._SIGHT_WAIT_S = 1.0
        return stuck.SMALL
    if os.environ["GNP_SCALE_TEST_DISAGREE"] == "seed":
        return Config(train=TrainConfig(seed=rank))
    if os.environ["GNP_SCALE_TEST_DISAGREE"] == "many":
        return Config(
            train=TrainConfig(seed=rank, num_steps=2000 + rank, log_every_steps=10 + rank, eval_every_steps=9 + rank)
        )
    if rank == 1 and os.environ["GNP_SCALE_TEST_DISAGREE"] == "budgets":
        os.environ[VARIABLE] = "train=60"
    elif rank == 1:
        agreement.__version__ = "9.9"
    return Config()
