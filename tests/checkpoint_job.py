"""`test_checkpoint_processes.py` runs this in several processes: it saves two more steps in the given folder.

With `--full-rank N`, process N can at first write only a few bytes per file, as on its own full disk.
"""

import argparse
import collections
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.checkpoint import Checkpoints, writer
from gnp_scale.config import Config, MeshConfig
from gnp_scale.mesh import FSDP, REPLICATED, TENSOR, P, make_mesh, sharding
from gnp_scale.run import processes


def state_of(step):
    """A state that depends on its step: one array is sharded, one replicated, one replicated over some devices."""
    w_64x64 = np.random.default_rng(step).standard_normal((64, 64), np.float32)
    specs = {"w": P(FSDP, TENSOR), "whole": REPLICATED, "tensor": P(TENSOR)}
    return {
        name: jax.make_array_from_callback(w_64x64.shape, sharding(spec), lambda index: w_64x64[index])
        for name, spec in specs.items()
    }


def all_equal(a, b):
    return jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda x, y: (x == y).all(), a, b))


def limit_files(num_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--full-rank", type=int)
    options = parser.parse_args()
    processes.start()
    events = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
    writer.FIRST_WAIT_S = 1.0
    is_full = jax.process_index() == options.full_rank
    options.run_dir.mkdir(exist_ok=True)
    with jax.set_mesh(make_mesh(MeshConfig(1, -1, 2))), Checkpoints(options.run_dir, Config()) as checkpoints:
        start, state = checkpoints.restore(state_of(0)) or (0, None)
        if start:
            equal = jax.jit(all_equal)(state, state_of(start))
            print(f"restored {start}: {'equal' if equal else 'different'}", flush=True)
        for step in (start + 1, start + 2):
            if is_full:
                limit_files(100)
            checkpoints.save(step, state_of(step), None)
            while checkpoints.latest_step != step:
                checkpoints.observe(step, 1.0)
                if is_full and checkpoints._writer._num_failures:
                    limit_files(resource.RLIM_INFINITY)
    print(f"saved {start + 2} with {events['/jax/compilation_cache/cache_hits']} programs from the cache", flush=True)
    return processes.leave(0)


if __name__ == "__main__":
    main()
