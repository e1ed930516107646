"""What the start of a run does only once, and what it does in parallel."""

import threading
import weakref
from collections import Counter
from dataclasses import replace

import faults
import jax
import pytest
from jax._src import monitoring

from gnp_scale import steps
from gnp_scale.config import ModelConfig
from gnp_scale.exit_codes import Exit
from gnp_scale.loop import train
from gnp_scale.models.registry import Model
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.training.compilation import MAX_AT_ONCE, Programs

pytestmark = pytest.mark.usefixtures("unoptimized")

PATIENCE_S = 300.0
SMALL = replace(faults.with_policy("rollback"), model=ModelConfig(name="vit_mu", patch_size=2, depth=1))


@pytest.fixture
def compiled():
    """Counts compilations by the name of the function, including those that come from the cache."""
    names = Counter()

    def count(event, duration_secs, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            names[details["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    yield names
    monitoring.unregister_event_duration_listener(count)


@pytest.mark.slow
def test_the_state_is_traced_once_and_each_program_compiled_once_even_after_a_rollback(tmp_path, monkeypatch, compiled):
    """The state is initialized again: no checkpoint is good at step 4."""
    traced, init = [], Model.init
    monkeypatch.setattr(Model, "init", lambda self, key: traced.append(key) or init(self, key))
    faults.poison(monkeypatch.setattr, (4, 0))
    assert train(SMALL, tmp_path) == Exit.FINISHED
    assert [row["step"] for row in read_metrics(tmp_path) if "eval/top1" in row] == [8, 16]
    assert len(traced) == 1
    assert {name: compiled[name] for name in ("jit(init)", "jit(train_step)", "jit(eval_step)")} == {
        "jit(init)": 1,
        "jit(train_step)": 1,
        "jit(eval_step)": 1,
    }


@pytest.mark.slow
def test_the_first_batch_is_read_while_programs_are_compiled(tmp_path, monkeypatch):
    is_read, read, compile_program = threading.Event(), steps.train_batches, jax.stages.Lowered.compile

    def noted(*arguments):
        for batch in read(*arguments):
            is_read.set()
            yield batch

    def compile_late(lowered):
        assert is_read.wait(PATIENCE_S), "no batch was asked for"
        return compile_program(lowered)

    monkeypatch.setattr(steps, "train_batches", noted)
    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_late)
    assert train(SMALL, tmp_path) == Exit.FINISHED


@pytest.mark.slow
def test_a_run_keeps_no_batch_that_it_has_used(tmp_path, monkeypatch):
    read, used = steps.train_batches, []

    def noted(*arguments):
        for batch in read(*arguments):
            assert all(array() is None for array in used)
            used.append(weakref.ref(batch["image"]))
            yield batch
            del batch

    monkeypatch.setattr(steps, "train_batches", noted)
    assert train(SMALL, tmp_path) == Exit.FINISHED
    assert len(used) == SMALL.train.num_steps


class Traced:
    """Replaces a traced program; its compilation ends only if another one runs in parallel."""

    def __init__(self, both, running, most):
        self._both, self._running, self._most = both, running, most

    def compile(self):
        self._running.append(self)
        self._most.append(len(self._running))
        self._both.wait(PATIENCE_S)
        self._running.remove(self)
        return self


def test_two_programs_are_compiled_at_a_time_and_none_twice():
    both, running, most = threading.Barrier(MAX_AT_ONCE), [], []
    traced = {name: Traced(both, running, most) for name in range(4)}
    with Programs(traced) as programs:
        programs.start([0, 1])
        programs.start(range(4))
        assert [programs.get(name) for name in (3, 0, 1, 2, 0)] == [traced[name] for name in (3, 0, 1, 2, 0)]
    assert (len(most), max(most)) == (4, MAX_AT_ONCE)
