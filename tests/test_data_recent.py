"""What was used last is kept: in the right order, opened once, and several at a time."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gnp_scale.data.containers import byte_ranges
from gnp_scale.data.containers.entries import Entry
from gnp_scale.data.containers.recent import Recent


def test_the_value_that_was_not_used_for_longest_is_dropped():
    made = []
    recent = Recent(2, lambda number: made.append(number) or -number)
    assert [recent.get(number) for number in (1, 2, 1, 3, 1, 2)] == [-1, -2, -1, -3, -1, -2]
    assert made == [1, 2, 3, 2]


def test_two_values_are_opened_at_a_time():
    """Opening takes a request to a store, or the index of a shard; readers of other shards need not wait for it."""
    both = threading.Barrier(2, timeout=20)
    recent = Recent(8, lambda number: (both.wait() and None) or number)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(recent.get, (1, 2))) == [1, 2]


def test_a_value_that_several_threads_ask_for_is_opened_once():
    made, is_asked = [], threading.Event()

    def make(number):
        is_asked.wait(20)
        made.append(number)
        return object()

    recent = Recent(8, make)
    with ThreadPoolExecutor(4) as threads:
        values = [threads.submit(recent.get, 5) for _ in range(4)]
        is_asked.set()
        assert len({id(value.result()) for value in values}) == 1
    assert made == [5]


def test_a_value_that_cannot_be_opened_is_tried_again():
    files = {}
    recent = Recent(2, lambda number: files[number])
    with pytest.raises(KeyError):
        recent.get(1)
    files[1] = "file"
    assert recent.get(1) == "file"


def test_a_file_that_is_dropped_while_it_is_read_is_not_closed(tmp_path, monkeypatch):
    """Its descriptor might already be that of another file."""
    for name in ("first", "other"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(byte_ranges, "most_open_files", lambda: 1)
    files, pread = byte_ranges._LocalFiles(tmp_path, ["first", "other"]), os.pread

    def interrupted(descriptor, *arguments):
        files._open.get(1)
        return pread(descriptor, *arguments)

    monkeypatch.setattr(os, "pread", interrupted)
    assert files.begin_read(Entry("first", 0, 5, 0, "first"), 0)() == b"first"
