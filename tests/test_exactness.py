"""A resumed run says correctly whether its numbers are those of an uninterrupted run, and what differs."""

import copy

import jax
import pytest

from gnp_scale.checkpoint import exactness as module
from gnp_scale.checkpoint.exactness import circumstances, exactness
from gnp_scale.config import Config, DataConfig, OptimConfig, TrainConfig
from gnp_scale.training import update

BITWISE = "on the same mesh: the run is bitwise the one that was not interrupted"
ROUNDING = "the same examples, numbers equal up to rounding"
EXAMPLES = "numbers, and examples, may differ"


@pytest.fixture
def saved(set_mesh):
    """The metadata of a checkpoint that was saved here."""
    set_mesh(1, 4, 2)
    return copy.deepcopy(circumstances(Config()))


def test_where_nothing_has_changed_it_is_bitwise(saved):
    assert exactness(saved, Config()) == BITWISE


def test_an_older_name_of_the_same_kernels_is_no_change(saved):
    saved["compiled"]["kernels"] = "reference"
    assert exactness(saved, Config()) == BITWISE


CHANGES = {
    "a library": (("versions", "scipy"), "1.0", "other versions of scipy", EXAMPLES),
    "this package": (("versions", "gnp_scale"), "0.0.1", "other versions of gnp_scale", EXAMPLES),
    "the random generator": (("random", "jax_default_prng_impl"), "rbg", "another jax_default_prng_impl", EXAMPLES),
    "its layout": (("random", "jax_threefry_partitionable"), False, "another jax_threefry_partitionable", EXAMPLES),
    "the device": (("device",), "TPU v4", "(TPU v4, 1 processes), now on", ROUNDING),
    "the processes": (("num_processes",), 2, "(cpu, 2 processes), now on", ROUNDING),
    "the mesh": (("mesh",), {"replica": 8, "fsdp": 1, "tensor": 1}, "saved on replica 8 x fsdp 1", ROUNDING),
    "the kernels": (("compiled", "kernels"), "triton", "another kernels triton -> xla", ROUNDING),
    "the CPU": (("compiled", "CPU"), "an older one", "another CPU an older one -> ", ROUNDING),
    "the driver": (("compiled", "back end"), "cuda 12", "another back end cuda 12 -> cpu", ROUNDING),
    "a flag": (("compiled", "XLA_FLAGS"), "--xla_x=1", "another XLA_FLAGS --xla_x=1 -> ", ROUNDING),
    "precision": (
        ("compiled", "JAX_DEFAULT_MATMUL_PRECISION"),
        "highest",
        "another JAX_DEFAULT_MATMUL_PRECISION highest -> None",
        ROUNDING,
    ),
}


@pytest.mark.parametrize(("path", "value", "named", "meaning"), CHANGES.values(), ids=CHANGES)
def test_what_has_changed_is_named(saved, path, value, named, meaning):
    at = saved
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    words = exactness(saved, Config())
    assert named in words
    assert meaning in words
    assert "bitwise" not in words


def test_the_worst_of_two_changes_counts(saved):
    """The run must not call the examples the same if they may differ, even if the mesh has changed too."""
    saved["versions"]["grain"], saved["mesh"] = "0.1", {"replica": 8, "fsdp": 1, "tensor": 1}
    assert EXAMPLES in exactness(saved, Config())


def test_the_environment_is_seen(saved, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_dump_to=/dump")
    assert exactness(saved, Config()) == BITWISE
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert f"another XLA_FLAGS  -> --xla_cpu_enable_fast_math=true: {ROUNDING}" in exactness(saved, Config())
    monkeypatch.delenv("XLA_FLAGS")
    with jax.default_matmul_precision("highest"):
        assert ROUNDING in exactness(saved, Config())
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        assert f"another JAX_DISABLE_MOST_OPTIMIZATIONS None -> True: {ROUNDING}" in exactness(saved, Config())
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def test_what_decodes_images_counts_where_they_are_files(saved):
    of_files = Config(data=DataConfig(name="photographs"))
    assert "pillow" not in saved["versions"]
    there = circumstances(of_files)
    assert exactness(there, of_files) == BITWISE
    there["versions"]["pillow"] = "0.1"
    assert f"other versions of pillow: {EXAMPLES}" in exactness(there, of_files)


def test_the_name_of_the_same_kernels_is_no_change(saved):
    assert exactness(saved, Config(train=TrainConfig(kernels="xla"))) == BITWISE


def test_block_sizes_and_versions_of_kernels_count_where_they_run(saved, monkeypatch):
    config = Config(optim=OptimConfig("adamw"))
    monkeypatch.setattr(update, "implementation", lambda _: "triton")
    saved = circumstances(config)
    assert {"triton", "jax-triton"} <= saved["versions"].keys()
    monkeypatch.setattr(module, "tunings", lambda: {"perturb": {"block_size": 512, "num_warps": 2}})
    assert f"another block sizes of kernels {saved['compiled']['block sizes of kernels']} -> " in exactness(
        saved, config
    )


def test_of_an_earlier_version_it_says_what_is_not_known(saved):
    """0.1.0 did not record scipy, kernels or the CPU."""
    for key in ("random", "compiled"):
        del saved[key]
    for name in ("numpy", "scipy"):
        del saved["versions"][name]
    words = exactness(saved, Config())
    assert words.startswith(f"{BITWISE}, if the values that the checkpoint lacks have not changed (numpy, scipy, ")
    assert words.endswith("kernels, compiler options, back end, CPU)")
    saved["versions"]["jax"] = "0.1"
    assert words != exactness(saved, Config())
    assert "other versions of jax: " in exactness(saved, Config())


def test_a_checkpoint_from_before_there_were_compiler_options_is_equal_up_to_rounding(saved):
    """They change how convolutions are computed."""
    del saved["compiled"]["compiler options"]
    words = exactness(saved, Config())
    assert "with another compiler options None -> xla_cpu_" in words
    assert words.endswith(ROUNDING)


@pytest.fixture
def cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_gpu_is_bitwise_only_with_the_same_program_or_fixed_algorithms(set_mesh, cache, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    without = circumstances(Config())
    assert ROUNDING in exactness(without, Config())
    program = cache / "jit_train_step-12ab-cache"
    program.touch()
    assert ROUNDING in exactness(without, Config())
    kept = circumstances(Config())
    assert exactness(kept, Config()) == BITWISE
    program.unlink()
    assert f"step of the earlier start is not in {cache}" in exactness(kept, Config())
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    assert ROUNDING in exactness(kept, Config())
    assert exactness(circumstances(Config()), Config()) == BITWISE
