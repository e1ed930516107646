"""`test_consensus.py` runs this in several processes: many rounds, of which the coordination service keeps few."""

import jax
from jax._src import distributed

from gnp_scale.run import processes
from gnp_scale.run.consensus import all_gather, broadcast

NUM_ROUNDS = 350


def main():
    processes.start()
    rank, client = distributed.global_state.process_id, distributed.global_state.client
    most_keys = 0
    for number in range(NUM_ROUNDS):
        assert broadcast([rank, number]) == [0, number]
        most_keys = max(most_keys, len(client.key_value_dir_get("gnp_scale/consensus/")))
    for number in range(NUM_ROUNDS):
        assert all_gather((rank, number)) == [[n, number] for n in range(jax.process_count())]
    assert broadcast({"loss": float("inf")}) == {"loss": float("inf")}
    num_keys = len(client.key_value_dir_get("gnp_scale/consensus/"))
    print(f"at most {most_keys} keys, {num_keys} at the end", flush=True)
    return processes.leave(0)


if __name__ == "__main__":
    main()
