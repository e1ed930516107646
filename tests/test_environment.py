"""In an unusual or wrong environment a run works without the missing parts, or one line says what to change."""

import logging
import os
import platform
import re
import subprocess
import sys

import jax
import pytest
from jax._src import hardware_utils
from launcher import Job

from gnp_scale.checks import ConfigError, PassingError, local_path
from gnp_scale.exit_codes import Exit
from gnp_scale.run import environment

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", False),
        ("--xla_gpu_deterministic_ops=true", True),
        ("--xla_dump_to=x --xla_gpu_deterministic_ops", True),
        ("--xla_gpu_exclude_nondeterministic_ops=1", True),
        ("--xla_gpu_exclude_nondeterministic_ops=false", False),
    ],
)
def test_flags_for_deterministic_operations_are_read_as_xla_reads_them(flags, expected, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert environment.is_deterministic() == expected


@pytest.fixture
def found_only_a_cpu(monkeypatch):
    """JAX has looked for accelerators by itself."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(hardware_utils, "has_visible_nvidia_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", "cpu")


def test_an_accelerator_that_is_not_used_is_told(found_only_a_cpu, monkeypatch, capsys):
    environment.check_devices(is_main=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "has an NVIDIA GPU that JAX cannot use; pip install '.[cuda]'" in line
    monkeypatch.setattr(hardware_utils, "has_visible_nvidia_gpu", lambda: False)
    monkeypatch.setattr(hardware_utils, "num_available_tpu_chips_and_device_id", lambda: (4, None))
    environment.check_devices(is_main=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "has a TPU that JAX cannot use; pip install '.[tpu]'" in line


@pytest.mark.parametrize("why", ["asked for the CPU", "hid the GPU", "no accelerator", "another process says it"])
def test_there_is_no_false_alarm(why, found_only_a_cpu, monkeypatch, capsys):
    match why:
        case "asked for the CPU":
            jax.config.update("jax_platforms", "cpu")
        case "hid the GPU":
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        case "no accelerator":
            monkeypatch.setattr(hardware_utils, "has_visible_nvidia_gpu", lambda: False)
    environment.check_devices(is_main=why != "another process says it")
    assert capsys.readouterr().err == ""


def test_jax_does_not_say_it_a_second_time(found_only_a_cpu, monkeypatch, caplog):
    logger = logging.getLogger("jax._src.xla_bridge")

    def default_backend():
        logger.warning("An NVIDIA GPU may be present on this machine, but ...")
        logger.warning("CUDA backend failed to initialize: no driver")
        return "cpu"

    monkeypatch.setattr(jax, "default_backend", default_backend)
    environment.check_devices(is_main=True)
    assert [record.getMessage() for record in caplog.records] == ["CUDA backend failed to initialize: no driver"]


@pytest.mark.parametrize(
    ("raised", "kind", "part"),
    [
        (RuntimeError("Backend 'foo' is not in the list of known backends: ['cpu']."), ConfigError, "['cpu']"),
        (RuntimeError("the TPU is in use\nby process 7"), PassingError, "the TPU is in use by process 7"),
        (AssertionError(), PassingError, "JAX found no device of that platform"),
    ],
)
def test_devices_that_do_not_start_are_one_line(raised, kind, part, monkeypatch):
    """Another process may release a device, so only a missing platform is a user's mistake."""

    def default_backend():
        raise raised

    monkeypatch.setattr(jax, "default_backend", default_backend)
    with pytest.raises(kind, match=re.escape(part)) as error:
        environment.check_devices(is_main=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"), [("jax_enable_x64", True), ("jax_disable_jit", True), ("jax_numpy_dtype_promotion", "strict")]
)
def test_settings_of_jax_that_training_cannot_work_with(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        with pytest.raises(ConfigError, match=f"{name.upper()} is {value}"):
            environment.check_jax_settings()
    finally:
        jax.config.update(name, before)


@pytest.mark.parametrize(("text", "number"), [("", 3), ("7", 7)])
def test_an_empty_variable_is_none(text, number, monkeypatch):
    monkeypatch.setenv("GNP_SCALE_TEST_NUMBER", text)
    assert environment.number("GNP_SCALE_TEST_NUMBER", 3) == number


def test_a_variable_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2(x1)")
    with pytest.raises(ConfigError, match=r"SLURM_STEP_NUM_TASKS is '2\(x1\)'"):
        environment.number("SLURM_STEP_NUM_TASKS", 1)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("gs://bucket/run", "mount the bucket"),
        ("s3://bucket/run", "mount the bucket"),
        ("~no-such-user-of-test/run", "no such home folder"),
        ("runs/\udcc3\udca9", "which is not UTF-8"),
        ("a" * 300, r"is a{300}, which cannot be used \(File name too long\): give another path"),
    ],
)
def test_a_path_that_is_none_is_refused(text, part):
    with pytest.raises(ConfigError, match=part):
        local_path("--run-dir", text)


def test_any_text_is_a_path():
    assert str(local_path("--run-dir", "läufe/走る/🏃 1")) == "läufe/走る/🏃 1"


WRONG = {
    "unknown platform": ({"JAX_PLATFORMS": "foo"}, "JAX_PLATFORMS is foo: "),
    "value that JAX refuses": ({"JAX_ENABLE_X64": "maybe"}, "JAX does not start with the variables JAX_"),
    "rank without a coordinator": ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS is not set"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("variables", "part"), WRONG.values(), ids=WRONG)
def test_a_wrong_variable_is_one_line(variables, part, tmp_path):
    job = Job(tmp_path, ["train", "tests/stuck.py:small", "--run-dir", str(tmp_path / "run")], variables=variables)
    assert job.exit_codes() == [Exit.WRONG_CONFIG]
    (line,) = job.output().splitlines()
    assert line.startswith("gnp-scale: ")
    assert part in line


@pytest.mark.slow
def test_processes_find_each_other_past_a_proxy(tmp_path):
    proxy = "http://127.0.0.1:9"
    variables = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY"), proxy)
    job = Job(
        tmp_path / "log",
        ["train", "tests/stuck.py:small", "--run-dir", str(tmp_path / "run")],
        num_processes=2,
        num_devices=4,
        variables=variables | {"GNP_SCALE_BUDGETS_S": "join=60"},
    )
    assert job.exit_codes() == [Exit.FINISHED] * 2, job.output()
    assert "proxy" not in job.output()


STEPS = """
import resource
import jax, jax.numpy as jnp
from gnp_scale.run import processes
processes.start()
processes.check_devices()
step = jax.jit(lambda x: jnp.sum(jnp.sin(x @ x.T)[::-1]))
x = jnp.ones((4096, 16))
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_step_takes_its_memory_from_the_one_before():
    """The system has to clear no page for it. With glibc's defaults it clears all pages in each step.

    A step that begins before the memory of the last one is free takes more, once: the least of the steps counts.
    """
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run([sys.executable, "-c", STEPS], env=env, capture_output=True, text=True, check=True)
    num_pages_of_a_copy = 4 * 4096 * 4096 / os.sysconf("SC_PAGESIZE")
    assert min(map(int, done.stdout.split())) < num_pages_of_a_copy / 10
