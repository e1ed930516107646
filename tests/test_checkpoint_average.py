"""The average of checkpoints is that of NumPy, of the newest intact ones, and needs as many as it is asked for."""

import gc
import os
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.checkpoint import Checkpoints, average, load_average, load_newest
from gnp_scale.checkpoint.average import load_whole_average
from gnp_scale.checkpoint.metadata import DamagedError
from gnp_scale.checkpoint.store import Store
from gnp_scale.config import CheckpointConfig, Config, ConfigError
from gnp_scale.mesh import FSDP, REPLICATED, P, sharding
from gnp_scale.training.state import NetworkState, TrainState

# As in test_checkpoint_damage.py: Orbax drops coroutines of a read that fails.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _collected():
    """Makes Python warn here, and not in later tests."""
    yield
    gc.collect()


CONFIG = Config(checkpoint=CheckpointConfig(every_steps=1, keep_last=4))


def state_of(step):
    """A state that depends on its step: parameters, batch statistics, momentum, moving average, and a copy."""
    draws = np.random.default_rng(step)
    specs = {"w": P(FSDP), "stats": REPLICATED, "momentum": P(FSDP), "ema": P(FSDP), "ema_stats": REPLICATED}
    made = {name: jax.device_put(draws.standard_normal(16, np.float32), sharding(s)) for name, s in specs.items()}
    return TrainState(
        jax.device_put(jnp.int32(step), sharding(REPLICATED)),
        {"w": made["w"]},
        {"mean": made["stats"]},
        {"momentum": made["momentum"]},
        ({"w": made["ema"]}, {"mean": made["ema_stats"]}),
        None,
        {"w": made["w"].astype(jnp.bfloat16)},
    )


@pytest.fixture
def run_dir(set_mesh, tmp_path):
    """The folder of a run with checkpoints of the steps 1 to 4."""
    set_mesh(fsdp=8)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state_of(step), None)
    return tmp_path


def abstract_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def abstract():
    return abstract_of(state_of(1).network)


def test_the_average_is_that_of_numpy(run_dir):
    step, state = load_average(run_dir, abstract(), 3)
    assert step == 4
    states = [jax.device_get(state_of(step)) for step in (4, 3, 2)]
    for name in ("params", "batch_stats", "ema"):
        trees = [getattr(each, name) for each in states]
        mean = jax.tree.map(lambda *ws: np.mean(np.float64(ws), axis=0), *trees)
        close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        jax.tree.map(close, jax.device_get(getattr(state, name)), mean)
    same = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), state, abstract())
    assert jax.tree.all(same)


@pytest.mark.parametrize(("name", "found"), [("opt_state/momentum", 4), ("copy/w", 4), ("ema/0/w", 3), ("params/w", 3)])
def test_what_is_read_of_a_state_has_its_checksums_and_nothing_else_is_read(name, found, run_dir, monkeypatch):
    read = Store.metadata

    def metadata(store, step):
        of_step = read(store, step)
        sums = of_step["checksums"]
        return of_step if step < 4 else of_step | {"checksums": sums | {name: sums[name] + 1}}

    monkeypatch.setattr(Store, "metadata", metadata)
    step, network = load_newest(run_dir, abstract())
    assert step == found
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(network), jax.device_get(state_of(step).network))
    with Checkpoints(run_dir, CONFIG) as checkpoints:
        assert checkpoints.restore(abstract_of(state_of(1)))[0] == 3, "a run goes on with nothing damaged"


@pytest.mark.parametrize("num", [3, 10])
def test_what_is_equal_in_all_checkpoints_keeps_its_bits(num, set_mesh):
    """Frozen parameters are those of the file from which a run began; a sum of three, divided by 3, changes a third."""
    set_mesh(fsdp=8)
    w = np.random.default_rng(0).standard_normal(10_000, np.float32)
    assert not np.array_equal(sum([w] * (num - 1), w) / np.float32(num), w)
    states = ((step, NetworkState({"w": jax.device_put(w, sharding(P(FSDP)))}, {}, None)) for step in range(num))
    _, found = average._average_of(states)
    np.testing.assert_array_equal(jax.device_get(found.params["w"]), w)


def test_the_average_of_one_is_the_newest(run_dir):
    step, state = load_average(run_dir, abstract(), 1)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(state_of(step).network))


def test_an_older_checkpoint_takes_the_place_of_a_damaged_one_until_there_are_too_few(run_dir, capfd):
    (largest, *_) = sorted((run_dir / "checkpoints" / "3").rglob("d/*"), key=lambda path: -path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:10])
    load_average(run_dir, abstract(), 3)
    printed = capfd.readouterr().err
    assert "the checkpoint of step 3 is damaged (" in printed
    assert "the average of the checkpoints of steps 1, 2, 4" in printed
    for num, found in ((4, 3), (5, 4)):
        with pytest.raises(ConfigError, match=f"holds {found} intact checkpoints, .* --checkpoint.keep-last {num}$"):
            load_average(run_dir, abstract(), num)


@pytest.mark.parametrize("average", ["on the mesh", "whole"])
def test_a_run_that_goes_on_leaves_no_gap_between_the_newest(average, run_dir, monkeypatch, capfd):
    """It saves steps 5 and 6, and deletes 2 and 3, while the checkpoint of step 4 is read."""
    read, reads, later = Store.metadata, [], run_dir / "later"
    later.mkdir()
    with Checkpoints(later, CONFIG) as checkpoints:
        for step in (5, 6):
            checkpoints.save(step, state_of(step), None)

    def metadata(store, step):
        reads.append(step)
        if len(reads) == 1:
            for old, new in ((2, 5), (3, 6)):
                shutil.move(later / "checkpoints" / str(new), run_dir / "checkpoints" / str(new))
                shutil.rmtree(run_dir / "checkpoints" / str(old))
        return read(store, step)

    monkeypatch.setattr(Store, "metadata", metadata)
    if average == "whole":
        step, found = load_whole_average(run_dir, 3)
        found = found["params"]
    else:
        step, state = load_average(run_dir, abstract(), 3)
        found = state.params
    assert step == 6
    states = [jax.device_get(state_of(step).params["w"]) for step in (6, 5, 4)]
    np.testing.assert_allclose(jax.device_get(found["w"]), np.mean(np.float64(states), axis=0), rtol=1e-6, atol=1e-7)
    assert "the average of the checkpoints of steps 4, 5, 6" in capfd.readouterr().err


@pytest.mark.parametrize(
    "average", [lambda folder: load_average(folder, abstract(), 2), partial(load_whole_average, num=2)]
)
def test_a_run_that_deletes_faster_than_one_reads_is_one_line(average, run_dir, monkeypatch):
    def metadata(store, step):
        path = run_dir / "checkpoints"
        shutil.move(path / str(step), path / str(max(map(int, os.listdir(path))) + 1))
        raise DamagedError("it is gone")

    monkeypatch.setattr(Store, "metadata", metadata)
    with pytest.raises(ConfigError, match=r"deletes its checkpoints before they are read: .* --checkpoint.keep-last$"):
        average(run_dir)
