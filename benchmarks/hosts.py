"""Times what a host does that grows with the number of hosts or examples: `python -m benchmarks.hosts`.

The hosts are threads of this process, each with a real client of one real coordination service of JAX. All of them
share the cores of this machine, so a round takes the work of all hosts together, and no network.
"""

import argparse
import asyncio
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath
from jax._src.lib import _jax
from orbax.checkpoint._src.serialization.ocdbt_process_spec import PROCESS_PREFIX
from orbax.checkpoint._src.serialization.ocdbt_utils import merge_ocdbt_per_process_files
from orbax.checkpoint._src.serialization.tensorstore_utils import get_ts_context

from gnp_scale.data.shuffle import examples_at
from gnp_scale.run import consensus

NUM_ROUNDS = 5
NUM_EXAMPLES, BATCH_SIZE = 14_197_122, 16_384
NUM_ARRAYS = 96
"""Of the state of a vision transformer with scanned blocks: about 32 parameters, each with two moments."""


def main() -> None:
    """Prints a table for the numbers of hosts on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("num_hosts", type=int, nargs="*", default=[8, 64, 256, 1024])
    print(
        "| hosts | s until all are connected | ms of a round of all | gets in turn in a round "
        "| ms for a host's examples | s to merge a checkpoint |\n|---|---|---|---|---|---|"
    )
    for num_hosts in parser.parse_args().num_hosts:
        connected_s, round_ms = connection_s_and_round_ms(num_hosts)
        row = (f"{connected_s:.1f}", f"{round_ms:.0f}", most_gets(num_hosts))
        row += (f"{examples_ms(num_hosts):.2f}", f"{merge_s(num_hosts):.1f}")
        print("|", " | ".join(map(str, (num_hosts, *row))), "|", flush=True)


def connection_s_and_round_ms(num_hosts: int) -> tuple[float, float]:
    """Seconds until all hosts are connected, and milliseconds of a round in which all get the values of all."""
    begin_s = time.perf_counter()
    with connected(num_hosts) as clients, ThreadPoolExecutor(num_hosts) as pool:
        connected_s = time.perf_counter()
        for number in range(NUM_ROUNDS):
            list(pool.map(gather, [clients] * num_hosts, range(num_hosts), [f"round/{number}"] * num_hosts))
        return connected_s - begin_s, 1e3 * (time.perf_counter() - connected_s) / NUM_ROUNDS


@contextmanager
def connected(num_hosts: int) -> Iterator[list[Any]]:
    """A client for each host, connected to one service."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    service = _jax.get_distributed_runtime_service(address, num_hosts)
    clients = [_jax.get_distributed_runtime_client(address, rank, init_timeout=300) for rank in range(num_hosts)]
    with ThreadPoolExecutor(num_hosts) as pool:
        list(pool.map(lambda client: client.connect(), clients))
        yield clients
        list(pool.map(lambda client: client.shutdown(), clients))
    service.shutdown()


def gather(clients: list[Any], rank: int, key: str) -> list[Any]:
    """The values of all hosts, which are their ranks, as host `rank` gets them."""
    return consensus.exchange(clients[rank], key, rank, len(clients), rank)


def most_gets(num_hosts: int) -> int:
    """How many values process 0, which waits for most, gets one after the other in a round."""
    counted = Counter()
    consensus.collect(counted, "round", 0, num_hosts, None)
    return counted.num_gets


class Counter:
    """In the place of a client: it counts, and each value is there."""

    num_gets = 0

    def blocking_key_value_get(self, key: str, timeout_ms: int) -> str:
        """An empty list of values."""
        self.num_gets += 1
        return "[]"


def examples_ms(num_hosts: int) -> float:
    """Milliseconds until a host knows its examples of a batch, in the tenth epoch of ImageNet-21k."""
    place = 9 * NUM_EXAMPLES + np.arange(BATCH_SIZE // num_hosts, dtype=np.int64)
    examples_at(0, NUM_EXAMPLES, place)
    begin_s = time.perf_counter()
    for number in range(NUM_ROUNDS):
        examples_at(0, NUM_EXAMPLES, place + number * BATCH_SIZE)
    return 1e3 * (time.perf_counter() - begin_s) / NUM_ROUNDS


def merge_s(num_hosts: int) -> float:
    """Seconds in which Orbax, in process 0 and behind training, makes one checkpoint of what all hosts have written."""
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(num_hosts):
            _write_shards(Path(folder) / f"{PROCESS_PREFIX}{rank}", rank)
        begin_s = time.perf_counter()
        asyncio.run(merge_ocdbt_per_process_files(epath.Path(folder), get_ts_context(), use_zarr3=True))
        return time.perf_counter() - begin_s


def _write_shards(folder: Path, rank: int) -> None:
    """As Orbax does: a shard of each array, and the shape of the array, which each host writes."""
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
    with ts.Transaction() as transaction:
        for number in range(NUM_ARRAYS):
            store.with_transaction(transaction)[f"{number}/zarr.json"] = b"{}" * 200
            store.with_transaction(transaction)[f"{number}/c/{rank}"] = rank.to_bytes(4) * 256


if __name__ == "__main__":
    main()
