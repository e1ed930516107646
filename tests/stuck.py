"""A recipe whose processes freeze, hang, fail or die as they enter a stage: `GNP_SCALE_TEST_STUCK` says which and how.

Its format is rank:stage:how, such as 1:save:freeze, or several of these separated by commas; `recipe` counts as a
stage, and so does `compiler`, where the evaluation is compiled.
"""

import contextlib
import ctypes
import os
import signal
import time
from types import SimpleNamespace

from gnp_scale import loop
from gnp_scale.config import CheckpointConfig, Config, ConfigError, DataConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.run import stages
from gnp_scale.run.stages import Stage, Stages
from gnp_scale.training.setup import Task

VARIABLE = "GNP_SCALE_TEST_STUCK"
FIRST_STEPS = {Stage.DATA: 6, Stage.SAVE: 8}
"""Stages in which it happens in the middle of a run, not at the first visit."""
UNTIL_REPORTED_S = 2.0
"""By then the others have received the report that the stage was entered."""
SMALL = Config(
    data=DataConfig(batch_size=64, eval_batch_size=120),
    model=ModelConfig(name="vit_mu", patch_size=2),
    optim=OptimConfig(name="adamw", learning_rate=1e-3),
    train=TrainConfig(num_steps=12, log_every_steps=3, eval_every_steps=5),
    checkpoint=CheckpointConfig(every_steps=4, keep_best=0),
)


def _fail():
    raise OSError("no such disk")


def _announce():
    print("here I am", flush=True)
    time.sleep(UNTIL_REPORTED_S)


def _refuse():
    raise ConfigError("no data set here")


ACTS = {
    "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(600),
    "hang_in_native_code": lambda: ctypes.CDLL(None).sleep(600),
    "hang_with_the_lock": lambda: ctypes.PyDLL(None).sleep(600),
    "announce": _announce,
    "fail": _fail,
    "refuse": _refuse,
}


def small() -> Config:
    """Trains the digits for a short time, if no fault is requested."""
    for entry in filter(None, os.environ.get(VARIABLE, "").split(",")):
        rank, stage, how = entry.split(":")
        if os.environ.get("JAX_PROCESS_ID", "0") == rank:
            if stage == "recipe":
                ACTS[how]()
            elif stage == "compiler":
                loop.trace_eval_step = lambda task, act=ACTS[how]: SimpleNamespace(compile=act)
            else:
                _arm(Stage(stage), ACTS[how])
    return SMALL


def _arm(stage, act):
    enter, find_task = Stages.enter, Task.of

    @contextlib.contextmanager
    def enter_and_act(self, entered, step):
        with enter(self, entered, step):
            if entered == stage and step >= FIRST_STEPS.get(stage, 0):
                time.sleep(UNTIL_REPORTED_S)
                act()
            yield

    def find_task_and_act(config):
        time.sleep(UNTIL_REPORTED_S)
        act()
        return find_task(config)

    stages.Stages.enter = enter_and_act
    if stage == Stage.START:
        Task.of = find_task_and_act
