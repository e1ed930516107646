"""The lock of a run folder on a store: one owner, and none that is dead keeps it for long."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from store_proxy import refuse

from gnp_scale.config import ConfigError
from gnp_scale.run import lease as lease_module
from gnp_scale.run.lease import Lease


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    for name, seconds in {"BEAT_S": 0.1, "EXPIRY_S": 0.6, "_WAIT_S": 0.3, "_POLL_S": 0.05}.items():
        monkeypatch.setattr(lease_module, name, seconds)


def no_loss(reason):
    raise AssertionError(reason)


def leave_lock(folder, **record):
    """What an owner has left that stopped in the middle."""
    owner = {"name": "process 1 on elsewhere", "token": "0", "machine": "another", "pid": 1, "born": "1", "beat": 3}
    (folder / "lock.7").write_text(json.dumps(owner | {"is_free": False} | record))


def test_a_folder_has_one_owner_at_a_time(store):
    folder = store.folder()
    words = rf"{folder} is in use by process {os.getpid()} on"
    with Lease(folder, no_loss), pytest.raises(ConfigError, match=words), Lease(folder, no_loss):
        pass
    began_s = time.monotonic()
    with Lease(folder, no_loss) as second:
        assert time.monotonic() - began_s < 0.5, "a folder that was freed is not waited for"
        assert second.is_ours()
    assert folder.names() == ["lock.2"]


def test_of_many_that_start_at_once_one_gets_it(store, monkeypatch):
    monkeypatch.setattr(lease_module, "EXPIRY_S", 60.0)
    folder = store.folder()
    results, done = [], threading.Event()

    def start():
        try:
            with Lease(folder, no_loss):
                results.append("owner")
                done.wait(5)
        except ConfigError:
            results.append("refused")

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + 10
    while len(results) < 5 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["owner", *["refused"] * 4]


def test_an_owner_of_another_machine_that_died_is_replaced_after_the_expiry(store):
    folder = store.folder()
    leave_lock(folder)
    began_s = time.monotonic()
    with Lease(folder, no_loss):
        assert 0.6 < time.monotonic() - began_s < 3.0
    assert folder.names() == ["lock.8"]


def test_a_pause_of_the_process_that_waits_is_no_silence_of_the_owner(store, monkeypatch):
    folder = store.folder()
    leave_lock(folder)
    requests, newest = [], Lease._newest

    def newest_after_a_pause(lease):
        requests.append(newest(lease))
        if len(requests) == 2:
            time.sleep(2 * lease_module.EXPIRY_S)
        return requests[-1]

    monkeypatch.setattr(Lease, "_newest", newest_after_a_pause)
    with Lease(folder, no_loss):
        assert len(requests) > 5, "it looked again, for the time that it waits"


def test_a_number_that_two_owners_have_passed_is_no_lock(store, monkeypatch):
    folder = store.folder()
    leave_lock(folder)
    seen = iter([(5, None)])  # It read this before the two came.
    newest = Lease._newest
    monkeypatch.setattr(Lease, "_newest", lambda lease: next(seen, None) or newest(lease))
    began_s = time.monotonic()
    with Lease(folder, no_loss):
        assert time.monotonic() - began_s > 0.6, "it waited for the owner of the highest number"
    assert folder.names() == ["lock.8"]


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_lock_is_replaced_after_the_expiry(store, text):
    folder = store.folder()
    (folder / "lock.7").write_text(text)
    with Lease(folder, no_loss):
        assert folder.names() == ["lock.8"]


def test_an_owner_of_this_machine_that_was_killed_is_replaced_at_once(store, monkeypatch):
    monkeypatch.setattr(lease_module, "EXPIRY_S", 60.0)
    folder = store.folder()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        born = lease_module._born(process.pid)
        assert born is not None
        leave_lock(folder, machine=lease_module._machine(), pid=process.pid, born=born)
        process.kill()
        # It is a zombie now: nobody has asked for its exit code.
        deadline_s = time.monotonic() + 10
        while lease_module._born(process.pid) is not None and time.monotonic() < deadline_s:
            time.sleep(0.01)
        with Lease(folder, no_loss):
            assert folder.names() == ["lock.8"]


def test_a_number_that_another_process_has_now_is_no_sign_of_life(store, monkeypatch):
    monkeypatch.setattr(lease_module, "EXPIRY_S", 60.0)
    folder = store.folder()
    leave_lock(folder, machine=lease_module._machine(), pid=os.getpid(), born="1")
    with Lease(folder, no_loss):
        assert folder.names() == ["lock.8"]


def test_an_owner_that_was_suspended_and_replaced_learns_of_it(store):
    folder = store.folder()
    reasons = []
    with Lease(folder, reasons.append) as first:
        store.proxy.disturb(refuse(403), 10_000, "lock.1")  # As if it did not run: it cannot renew.
        time.sleep(0.3)
        store.proxy.calm()
        first._object(2).write_text(json.dumps({"name": "the next", "token": "1", "is_free": False}))
        deadline_s = time.monotonic() + 5
        while not reasons and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert not first.is_ours()
    assert f"another start has taken {folder}" in reasons[0]
    assert json.loads((folder / "lock.2").read_bytes())["is_free"] is False, "the lock of the other is left alone"


def test_an_outage_of_the_store_is_not_the_loss_of_the_lock(store):
    folder = store.folder()
    with Lease(folder, no_loss) as lease:
        store.proxy.disturb(refuse(403), 10_000)
        time.sleep(1.0)
        store.proxy.calm()
        assert lease.is_ours()
        time.sleep(0.3)
        with pytest.raises(ConfigError, match="in use"), Lease(folder, no_loss):
            pass
