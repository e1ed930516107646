"""Two processes that share a mesh: each reads its own rows, and together they see every example exactly once."""

import json
import socket
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from gnp_scale.data.pipeline import batch_indices

NUM_EXAMPLES, BATCH_SIZE, TIMEOUT_S = 37, 16, 180

WORKER = """
import json, sys
import jax, jax.numpy as jnp, numpy as np

port, process = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, initialization_timeout=60)

from gnp_scale.config import DataConfig, MeshConfig
from gnp_scale.data.dataset import Dataset, Split
from gnp_scale.data.pipeline import eval_batches, train_batches
from gnp_scale.mesh import make_mesh

read = []

class NotingLabels(np.ndarray):
    def __getitem__(self, chosen):
        read.extend(np.asarray(chosen).tolist())
        return np.asarray(self)[chosen]

label_N = np.arange(37, dtype=np.int32)
split = Split(np.zeros((37, 2, 2, 1), np.uint8), label_N.view(NotingLabels))
dataset = Dataset("numbered", split, split, 37, (0.0,), (1.0,))
config = DataConfig(batch_size=16, eval_batch_size=16)

def local_rows(x):
    return [row for shard in x.addressable_shards if shard.replica_id == 0 for row in shard.data.tolist()]

results = {}
for shape in ((2, 4, 1), (1, 2, 4), (1, 1, 8)):
    with jax.set_mesh(make_mesh(MeshConfig(*shape))):
        evaluated, masks, total = [], [], 0
        for batch in eval_batches(dataset.test, config):
            evaluated += local_rows(batch["label"])
            masks += local_rows(batch["mask"])
            total += int(jax.jit(jnp.sum)(batch["mask"]))
        read.clear()
        (batch,) = train_batches(dataset, config, seed=5, start_step=9, num_steps=1)
        results["x".join(map(str, shape))] = {
            "evaluated": evaluated,
            "masks": masks,
            "total": total,
            "trained": local_rows(batch["label"]),
            "read": read[:],
        }
print(json.dumps(results))
"""


def run_two_processes() -> list[dict]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    commands = [[sys.executable, "-c", WORKER, str(port), str(process)] for process in range(2)]
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    try:
        outputs = [worker.communicate(timeout=TIMEOUT_S) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    for worker, (_, errors) in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_two_processes()


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["2x4x1", "1x2x4", "1x1x8"])
def test_together_they_see_every_example_once(results: list[dict], shape: str):
    both = [result[shape] for result in results]
    pairs = [pair for result in both for pair in zip(result["evaluated"], result["masks"], strict=True)]
    counted = Counter(label for label, mask in pairs if mask)
    assert counted == Counter(range(NUM_EXAMPLES))
    assert len(pairs) == 3 * BATCH_SIZE
    assert [result["total"] for result in both] == [NUM_EXAMPLES, NUM_EXAMPLES]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "num_read"), [("2x4x1", 8), ("1x2x4", 8), ("1x1x8", 16)])
def test_each_reads_the_rows_of_its_own_devices(results: list[dict], shape: str, num_read: int):
    both = [result[shape] for result in results]
    expected = batch_indices(5, NUM_EXAMPLES, BATCH_SIZE, 9)
    np.testing.assert_array_equal([*both[0]["trained"], *both[1]["trained"]], expected)
    assert [len(result["read"]) for result in both] == [num_read, num_read]
    assert set(both[0]["read"]) | set(both[1]["read"]) == set(expected.tolist())
