"""Compiled programs are kept where the user says, whole or not at all, and without a place a run works all the same."""

import errno
import os
import pwd
import shutil
import tempfile
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src import compilation_cache as file_cache
from jax.experimental.compilation_cache import compilation_cache

from gnp_scale.run import program_cache

CACHE_SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def same_settings():
    before = {name: getattr(jax.config, name) for name in CACHE_SETTINGS}
    with warnings.catch_warnings():
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def no_variables(monkeypatch):
    """No variable names a cache for compiled programs, and this user has no home."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_entry(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", no_entry)


@pytest.mark.parametrize("xdg", [None, "", "relative", "../up"])
def test_the_cache_folder_is_in_the_home_where_no_absolute_one_is_named(xdg, no_variables, monkeypatch, tmp_path):
    """By the XDG specification an empty or relative path is ignored."""
    monkeypatch.setenv("HOME", str(tmp_path))
    if xdg is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    program_cache.keep(is_writer=True)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".cache" / "gnp_scale" / "xla")


def test_the_cache_folder_may_be_named(no_variables, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    program_cache.keep(is_writer=True)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "x" / "gnp_scale" / "xla")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "y"))
    program_cache.keep(is_writer=True)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "y")


@pytest.mark.parametrize("home", [None, ""])
def test_without_a_home_nothing_is_kept_and_that_is_said_once(home, no_variables, monkeypatch, capsys):
    if home is not None:
        monkeypatch.setenv("HOME", home)
    program_cache.keep(is_writer=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no home folder" in line
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_made_is_none(monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/proc/no/folder")
    program_cache.keep(is_writer=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "/proc/no" in line
    assert jax.config.jax_compilation_cache_dir is None


def test_a_full_disk_is_still_read_but_not_written(monkeypatch, capsys, tmp_path):
    def full(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    program_cache.keep(is_writer=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == float("inf")


@pytest.mark.parametrize("folder", ["", "gs://bucket/cache"])
def test_what_jax_knows_better_is_left_to_it(folder, monkeypatch, capsys):
    """An empty variable turns the cache off, and JAX reads buckets itself."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
    program_cache.keep(is_writer=True)
    assert jax.config.jax_compilation_cache_dir == before
    assert capsys.readouterr().err == ""


def test_a_process_that_does_not_write_the_cache_does_not_try(monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/proc/no/folder")
    program_cache.keep(is_writer=False)
    assert capsys.readouterr().err == ""


def test_a_run_folder_gets_the_programs_that_are_compiled_after(no_variables, tmp_path):
    """Also those that take less than a second, and after JAX has used another folder."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "of the user"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()
    jax.jit(jnp.cos).lower(1.0).compile()
    program_cache.keep_in(tmp_path / "run")
    jax.jit(jnp.sin).lower(1.0).compile()
    assert [path.name.split("-")[0] for path in (tmp_path / "run").glob("*-cache")] == ["jit_sin"]


def test_a_folder_that_the_user_names_is_better_than_that_of_a_run(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "named"))
    before = jax.config.jax_compilation_cache_dir
    program_cache.keep_in(tmp_path / "run")
    assert jax.config.jax_compilation_cache_dir == before


def test_a_cache_that_fills_up_later_ends_nothing(monkeypatch, tmp_path):
    """Not even if PYTHONWARNINGS turns a warning into an error, as these tests do."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    program_cache.keep(is_writer=True)
    text = "Error writing persistent compilation cache entry for 'jit_step': OSError: full"
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn(text, stacklevel=1)
    assert [str(warning.message) for warning in caught] == [text]


def _compile(folder: Path) -> list[str]:
    """Compiles a program with the cache in `folder`; returns the warnings."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()
    jax.clear_caches()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.jit(jnp.tanh).lower(1.0).compile()
    return [str(warning.message) for warning in caught]


def test_a_program_that_was_cut_is_replaced(tmp_path):
    """As a kill of an earlier version left it: one start says so, and the next one reads the whole program."""
    assert _compile(tmp_path) == []
    (file,) = tmp_path.glob("jit_tanh-*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    (warning,) = _compile(tmp_path)
    assert "incomplete" in warning
    assert file.stat().st_size > len(whole) - 10
    assert _compile(tmp_path) == []


def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path):
    assert _compile(tmp_path / "cache") == []
    shutil.rmtree(tmp_path / "cache")
    jax.clear_caches()
    with warnings.catch_warnings(record=True) as caught:
        jax.jit(jnp.tanh).lower(1.0).compile()
    assert (caught, len([*(tmp_path / "cache").glob("jit_tanh-*")])) == ([], 1)


def test_a_kill_amid_a_program_leaves_nothing_under_its_name(monkeypatch, tmp_path):
    def half(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        _compile(tmp_path)
    assert list(tmp_path.glob("*-cache")) == []
    monkeypatch.undo()
    assert _compile(tmp_path) == []


def test_another_process_reads_a_whole_program_or_none(tmp_path):
    data = bytes(2**22)
    written, read = (file_cache.LRUCache(str(tmp_path), max_size=-1) for _ in range(2))
    is_done, seen = threading.Event(), set()

    def look():
        while not is_done.is_set():
            seen.add(read.get("program"))

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(50):
        written.put("program", data)
    is_done.set()
    thread.join()
    assert data in seen
    assert seen <= {None, data}
    assert list(tmp_path.glob("*.new")) == []
