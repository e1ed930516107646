"""Metrics keep their values on the way to the run folder, survive kills, and count FLOPs and seconds rightly."""

import errno
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from gnp_scale.config import ConfigError
from gnp_scale.mesh import FSDP, batch_spec
from gnp_scale.monitoring import metrics, throughput
from gnp_scale.monitoring.flops import flops, peak_flops_per_s
from gnp_scale.monitoring.metrics import DAMAGED_FILE, METRICS_FILE, MetricWriter, read_metrics
from gnp_scale.monitoring.throughput import Throughput
from gnp_scale.run import recorder as module
from gnp_scale.run import stages
from gnp_scale.run.recorder import Recorder
from gnp_scale.run.stages import Stage, Stages


def raiser(number):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


def log(run_dir, start_step, rows):
    with MetricWriter(run_dir, is_writer=True, start_step=start_step) as writer:
        for step, scalars in rows:
            writer.write(step, scalars)


@given(st.lists(st.dictionaries(st.text(min_size=1).map("x/{}".format), st.floats()), max_size=4))
def test_values_survive_the_round_trip(tmp_path_factory, rows):
    run_dir = tmp_path_factory.mktemp("run")
    log(run_dir, 0, enumerate(rows))
    written = [{"step": step, **scalars} for step, scalars in enumerate(rows)]
    np.testing.assert_equal(read_metrics(run_dir), written)


@pytest.mark.parametrize(("value", "text"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_values_that_are_not_finite_stay_valid_json(tmp_path, value, text):
    log(tmp_path, 0, [(1, {"train/loss": value})])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "train/loss": text}


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with MetricWriter(tmp_path, is_writer=True, start_step=0) as writer:
        writer.write(1, {"train/loss": 0.5})
        assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 0.5}]


def test_sync_waits_for_the_disk_with_all_lines(tmp_path, monkeypatch):
    rows_at_sync = {}

    def fsync(file):
        rows_at_sync[os.readlink(f"/proc/self/fd/{file}")] = read_metrics(tmp_path)

    with MetricWriter(tmp_path, is_writer=True, start_step=0) as writer:
        monkeypatch.setattr("os.fsync", fsync)
        writer.write(1, {"train/loss": 2.0})
        writer.sync()
        assert rows_at_sync[str(tmp_path / METRICS_FILE)] == [{"step": 1, "train/loss": 2.0}]


def test_evaluation_joins_the_line_of_its_step(tmp_path):
    log(tmp_path, 0, [(1, {"train/loss": 0.5}), (2, {"train/loss": 0.25}), (2, {"eval/top1": 0.75})])
    log(tmp_path, 2, [(2, {"eval/top5": 1.0}), (3, {"train/loss": 0.125})])
    assert read_metrics(tmp_path) == [
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "train/loss": 0.25, "eval/top1": 0.75, "eval/top5": 1.0},
        {"step": 3, "train/loss": 0.125},
    ]


def test_a_shorter_line_replaces_a_longer_one_whole(tmp_path):
    log(tmp_path, 0, [(1, {"train/loss": 0.123456789})])
    log(tmp_path, 1, [(1, {"train/loss": 0.5})])
    assert (tmp_path / METRICS_FILE).read_text() == '{"step": 1, "train/loss": 0.5}\n'


def test_a_step_may_not_go_back(tmp_path):
    with pytest.raises(AssertionError, match="step 1 after step 2"):
        log(tmp_path, 0, [(2, {}), (1, {})])


@pytest.mark.parametrize("start_step", range(5))
def test_a_resumed_run_repeats_no_step(tmp_path, start_step):
    log(tmp_path, 0, [(step, {"train/loss": 100.0 + step}) for step in range(1, 5)])
    log(tmp_path, start_step, [(step, {"train/loss": float(step)}) for step in range(start_step + 1, 7)])
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert [row["train/loss"] for row in rows] == [step if step > start_step else 100.0 + step for step in range(1, 7)]


@pytest.mark.parametrize("num_bytes_kept", [1, 7, 12, 30])
def test_a_half_written_last_line_is_dropped(tmp_path, num_bytes_kept):
    log(tmp_path, 0, [(1, {"train/loss": 0.5}), (2, {"train/loss": 0.25})])
    path = tmp_path / METRICS_FILE
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:num_bytes_kept])
    log(tmp_path, 2, [(3, {"train/loss": 0.125})])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]


GOOD = b'{"step": 1}\n'
DAMAGES = {
    "half a line": b'{"st\n',
    "half a line before a whole one": b'{"step": 2, "tra',
    "zeros where a power cut came": b"\0" * 4096,
    "not the object of a step": b'[1, 2]\n"text"\n{"loss": 1}\n{"step": null}\n{"step": 2, "loss": []}\n',
    "bytes that are no text": b"\xff\xfe\n",
    "deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_lines_are_moved_aside_and_told(tmp_path, capsys, damage):
    """A damaged log never prevents a start."""
    path = tmp_path / METRICS_FILE
    path.write_bytes(GOOD + damage + b'{"step": 3}\n{"step": 4}\n')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3, 4]
    log(tmp_path, 3, [(5, {})])
    assert path.read_bytes() == GOOD + b'{"step": 3}\n{"step": 5}\n'
    assert (tmp_path / DAMAGED_FILE).read_bytes().rstrip(b"\n") == damage.rstrip(b"\n")
    (line,) = capsys.readouterr().err.splitlines()
    assert DAMAGED_FILE in line
    log(tmp_path, 5, [(6, {})])
    assert not capsys.readouterr().err


def test_damage_that_cannot_be_moved_stays_and_the_run_goes_on(tmp_path, capsys, monkeypatch):
    path = tmp_path / METRICS_FILE
    path.write_bytes(GOOD + b'{"st\n{"step": 3}\n{"step": 4}\n')
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "replace_file", raiser(errno.ENOSPC))
        log(tmp_path, 3, [(5, {})])
    assert path.read_bytes() == GOOD + b'{"st\n{"step": 3}\n{"step": 5}\n'
    assert "(1) cannot be moved" in capsys.readouterr().err


def test_a_last_line_without_its_line_break_is_whole(tmp_path):
    (tmp_path / METRICS_FILE).write_bytes(GOOD.rstrip())
    log(tmp_path, 1, [(2, {})])
    assert (tmp_path / METRICS_FILE).read_bytes() == GOOD + b'{"step": 2}\n'


def test_a_log_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be used \(Is a directory\)"):
        MetricWriter(tmp_path, is_writer=True, start_step=0)


def test_clients_of_stores_are_not_imported_for_tensorboard(tmp_path):
    """Each takes a third of a second, where it is installed."""
    for client in ("boto3/__init__.py", "google/cloud/storage/__init__.py"):
        (tmp_path / client).parent.mkdir(parents=True)
        (tmp_path / client).write_text(f"raise SystemExit('imported {client}')")
    code = """
import sys, pathlib
from gnp_scale.monitoring.metrics import MetricWriter
with MetricWriter(pathlib.Path(sys.argv[1]), True, 0) as writer:
    print(writer.board is not None)
import boto3
"""
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (process.stdout, process.stderr) == ("True\n", "imported boto3/__init__.py\n")


def test_other_processes_write_nothing(tmp_path):
    run_dir = tmp_path / "run"
    with MetricWriter(run_dir, is_writer=False, start_step=0) as writer:
        writer.write(1, {"train/loss": 0.5})
    assert not run_dir.exists()


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances only on request, in a process that started 10 s ago."""
    now = [1000.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "boot_s", lambda: now[0])
    monkeypatch.setattr(stages, "PROCESS_START_S", 990.0)

    def advance(seconds):
        now[0] += seconds

    return advance


@pytest.fixture
def recorder(clock, tmp_path):
    """A record of a process in its first training step, and of a run without earlier starts."""
    recorder = Recorder(tmp_path, Stages(), is_writer=False)
    recorder.go_on_from(100)
    with recorder.stages.enter(Stage.TRAIN, 100):
        yield recorder


def test_throughput_counts_training_time_only(clock, recorder):
    timing = Throughput(100, 32, flops_per_pass=lambda: 1, num_passes=np.ones(120), recorder=recorder)
    with timing.waiting_for_data(101):
        clock(1)
    clock(4)
    with timing.paused(Stage.EVALUATE, 110, after=()):
        clock(5)
    assert timing.read(110) == {
        "perf/images_per_s": 64.0,
        "perf/step_ms": 500.0,
        "perf/data_wait_ms": 100.0,
        "perf/goodput": 0.2,  # 4 s of 20 s: waiting for data is not counted
    }
    clock(10)
    assert timing.read(120) == {
        "perf/images_per_s": 32.0,
        "perf/step_ms": 1000.0,
        "perf/data_wait_ms": 0.0,
        "perf/goodput": pytest.approx(14 / 30),
    }


def test_mfu_is_the_part_of_the_peak_of_all_devices(clock, recorder, monkeypatch):
    monkeypatch.setattr(throughput, "peak_flops_per_s", lambda kind: 100.0)
    timing = Throughput(0, 1, flops_per_pass=lambda: 400, num_passes=np.array([2, 1, 2, 1.5]), recorder=recorder)
    clock(2)
    assert timing.read(2)["perf/mfu"] == 3 * 400 / (2 * 8 * 100)
    clock(1)
    assert timing.read(4)["perf/mfu"] == 3.5 * 400 / (1 * 8 * 100)


def test_without_a_known_peak_no_flops_are_counted(recorder):
    """It would trace the network once more."""

    def count():
        raise AssertionError("nobody asks for them")

    Throughput(0, 1, flops_per_pass=count, num_passes=np.ones(1), recorder=recorder)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197e12), ("TPU v6 lite", 918e12), ("NVIDIA H100 80GB HBM3", 989e12), ("cpu", None)],
)
def test_peak_is_known_for_accelerators_only(kind, peak):
    assert peak_flops_per_s(kind) == peak


def ones(*shape):
    return jnp.ones(shape, jnp.float32)


def convolution(stride=1, padding="VALID", groups=1, dilation=1):
    def apply(x_NxHxWxC, w_HxWxIxO):
        return jax.lax.conv_general_dilated(
            x_NxHxWxC,
            w_HxWxIxO,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return apply


def loop(num_steps):
    return lambda x, w: jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ w), None), x, length=num_steps)[0]


def either(x, w):
    return jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)


@jax.custom_vjp
def custom(x, w):
    return x @ w


custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))

MATMUL = 2 * 4 * 8 * 8
CLOSED_FORMS = {
    "matmul": (jnp.matmul, (ones(4, 8), ones(8, 16)), 2 * 4 * 8 * 16),
    "batched matmul": (jnp.matmul, (ones(3, 4, 8), ones(3, 8, 16)), 2 * 3 * 4 * 8 * 16),
    "two contracted dims": (lambda a, b: jnp.einsum("abc,bcd->ad", a, b), (ones(2, 3, 4), ones(3, 4, 5)), 240),
    "elementwise": (jnp.add, (ones(4, 8), ones(4, 8)), 0),
    "convolution": (convolution(), (ones(2, 9, 9, 4), ones(3, 3, 4, 8)), 2 * 2 * 7 * 7 * 8 * 9 * 4),
    "strided": (convolution(stride=2), (ones(2, 9, 9, 4), ones(3, 3, 4, 8)), 2 * 2 * 4 * 4 * 8 * 9 * 4),
    "grouped": (convolution(groups=2), (ones(2, 9, 9, 4), ones(3, 3, 2, 8)), 2 * 2 * 7 * 7 * 8 * 9 * 2),
    "dilated": (convolution(dilation=2), (ones(2, 9, 9, 4), ones(3, 3, 4, 8)), 2 * 2 * 5 * 5 * 8 * 9 * 4),
    "padded": (convolution(padding="SAME"), (ones(2, 9, 9, 4), ones(3, 3, 4, 8)), 2 * 2 * 25 * 25 * 8 * 4),
    "scan": (loop(5), (ones(4, 8), ones(8, 8)), 5 * MATMUL),
    "scan in scan": (
        lambda x, w: jax.lax.scan(lambda carry, _: (loop(5)(carry, w), None), x, length=3)[0],
        (ones(4, 8), ones(8, 8)),
        15 * MATMUL,
    ),
    "jit": (jax.jit(jnp.matmul), (ones(4, 8), ones(8, 8)), MATMUL),
    "cond": (either, (ones(4, 8), ones(8, 8)), 2 * MATMUL),
    "custom_vjp": (custom, (ones(4, 8), ones(8, 8)), MATMUL),
    "gradient of custom_vjp": (
        jax.grad(lambda x, w: custom(x, w).sum(), argnums=(0, 1)),
        (ones(4, 8), ones(8, 8)),
        3 * MATMUL,
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_flops_equal_the_closed_form(name):
    fn, args, expected = CLOSED_FORMS[name]
    assert flops(fn, *args) == expected


def mlp(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x.sum()


LAYERS = [ones(8, 32), ones(32, 64), ones(64, 16)]
LAYER_FLOPS = [2 * 4 * w.size for w in LAYERS]


def test_gradient_of_an_mlp_costs_three_forwards_but_for_the_first_layer():
    """The first layer needs no gradient of its input."""
    assert flops(mlp, LAYERS, ones(4, 8)) == sum(LAYER_FLOPS)
    assert flops(jax.grad(mlp), LAYERS, ones(4, 8)) == 3 * sum(LAYER_FLOPS) - LAYER_FLOPS[0]


def test_checkpoint_pays_for_its_second_forward():
    def blocks(params, x):
        for w in params:
            x = jax.checkpoint(lambda x, w: jnp.tanh(x @ w) ** 2)(x, w)
        return x.sum()

    assert flops(jax.grad(blocks), LAYERS, ones(4, 8)) == 4 * sum(LAYER_FLOPS) - LAYER_FLOPS[0]


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2}, {"padding": "SAME", "stride": 2}], ids=str)
def test_gradient_of_a_convolution_costs_three_forwards(options):
    fn = convolution(**options)
    args = ones(2, 9, 9, 4), ones(3, 3, 4 // options.get("groups", 1), 8)
    gradient = jax.grad(lambda x, w: jnp.sum(fn(x, w) ** 2), argnums=(0, 1))
    assert flops(gradient, *args) == 3 * flops(fn, *args)


def test_shard_map_counts_every_shard(set_mesh):
    set_mesh(fsdp=4, tensor=2)
    manual = jax.shard_map(
        lambda x, w: x @ w, in_specs=(P(FSDP, None), P()), out_specs=P(FSDP, None), axis_names={FSDP}
    )
    assert flops(manual, ones(8, 8), ones(8, 8)) == 2 * 8 * 8 * 8


def test_sharded_arrays_count_over_all_devices(set_mesh):
    mesh = set_mesh(fsdp=8)
    x = jax.device_put(ones(8, 16), jax.sharding.NamedSharding(mesh, batch_spec(2)))
    assert flops(jnp.matmul, x, ones(16, 4)) == 2 * 8 * 16 * 4


def test_a_while_loop_of_unknown_length_is_refused():
    def forever(x):
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, x)

    with pytest.raises(ValueError, match=r"use jax\.lax\.scan"):
        flops(forever, ones(4, 4))


COMPILED = {
    "matmul": (jnp.matmul, (ones(64, 128), ones(128, 32))),
    "mlp gradient": (jax.grad(mlp), ([ones(64, 64), ones(64, 64)], ones(32, 64))),
    "padded, strided convolution": (convolution(2, "SAME"), (ones(2, 15, 15, 8), ones(3, 3, 8, 16))),
    "grouped convolution": (convolution(groups=4), (ones(2, 15, 15, 8), ones(3, 3, 2, 16))),
    "convolution gradient": (
        jax.grad(lambda x, w: jnp.sum(convolution(2, "SAME")(x, w) ** 2), argnums=(0, 1)),
        (ones(2, 15, 15, 8), ones(3, 3, 8, 16)),
    ),
}


@pytest.mark.parametrize("name", COMPILED)
def test_flops_agree_with_the_cost_analysis_of_loop_free_programs(name):
    """XLA also counts elementwise operations, a few per cent here."""
    fn, args = COMPILED[name]
    cost = jax.jit(fn).lower(*args).cost_analysis()
    assert cost is not None
    assert flops(fn, *args) == pytest.approx(cost["flops"], rel=0.05)
