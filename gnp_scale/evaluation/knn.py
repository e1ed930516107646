"""Classification by the nearest neighbours of an image's features, exact, on all devices.

T batches of B examples, Q queries, D features, k neighbours, S shards of the examples.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.evaluation.features import Features
from gnp_scale.mesh import BATCH, REPLICATED, P, on_shards
from gnp_scale.run.stages import Stage, Stages

TEMPERATURE = 0.07
NUM_NEIGHBOURS = (20, 10)
"""The k that arXiv 2104.14294 found best, and its second."""
_NONE = np.iinfo(np.int32).max
"""The number of a neighbour that does not exist."""

type _Neighbours = tuple[jax.Array, jax.Array, jax.Array]
"""Similarity, number and label of the neighbours of each query, in order; each Q x k."""


def knn_top1(train: Features, test: Features, stages: Stages) -> dict[int, float]:
    """The accuracy on `test` for each k of `NUM_NEIGHBOURS`.

    The k training images of largest cosine similarity s vote for their class with weight exp(s / 0.07), as in DINO
    (arXiv 2104.14294, appendix F.1). Of equally similar images, the first of the split is the nearer one; of classes
    with equal votes, the lowest wins. With fewer than k training images, all vote.

    The similarities of B queries to B training images are in memory at a time.
    """
    num_right = np.zeros(len(NUM_NEIGHBOURS))
    for number in range(len(test.mask)):
        with stages.enter(Stage.EVALUATE, stages.now.step):
            num_right += np.array(_num_right(train, test, np.int32(number), NUM_NEIGHBOURS))
    return dict(zip(NUM_NEIGHBOURS, (num_right / test.num_counted()).tolist(), strict=True))


@partial(jax.jit, static_argnames="ks")
def _num_right(train: Features, test: Features, number: jax.Array, ks: Sequence[int]) -> list[jax.Array]:
    """How many examples of batch `number` are classified correctly with each k."""
    batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, 0, keepdims=False), test)
    query_QxD, label_Q, mask_Q = (jax.sharding.reshard(x, REPLICATED) for x in batch)
    similarity_Qxk, _, neighbour_Qxk = _neighbours(train, query_QxD, max(ks))
    guesses = [_vote(similarity_Qxk[:, :k], neighbour_Qxk[:, :k]) for k in ks]
    return [jnp.sum(jnp.where(guess_Q == label_Q, mask_Q, 0.0)) for guess_Q in guesses]


def _neighbours(train: Features, query_QxD: jax.Array, k: int) -> _Neighbours:
    nearest = partial(_nearest_of_shard, k=k)
    out_specs = (P(BATCH, None, None),) * 3
    shards = on_shards(nearest, _unit(query_QxD), train, train.numbers(), out_specs=out_specs)
    similarity, number, label = (
        jnp.moveaxis(jax.sharding.reshard(x, REPLICATED), 0, 1).reshape(len(query_QxD), -1) for x in shards
    )
    # By falling similarity, then by rising number: the order does not depend on the mesh.
    distance, number, label = jax.lax.sort((-similarity, number, label), dimension=1, num_keys=2)
    return -distance[:, :k], number[:, :k], label[:, :k]


def _nearest_of_shard(query_QxD: jax.Array, train: Features, number_TxB: jax.Array, k: int) -> _Neighbours:
    """The nearest of the examples on this device, each 1 x Q x k."""
    num_queries = len(query_QxD)

    def merge(best: _Neighbours, block: tuple[Features, jax.Array]) -> tuple[_Neighbours, None]:
        (feature_BxD, label_B, mask_B), number_B = block
        similarity_QxB = jnp.einsum("qd,bd->qb", query_QxD, _unit(feature_BxD), precision=jax.lax.Precision.HIGHEST)
        similarity_QxB = jnp.where(mask_B[None] > 0, similarity_QxB, -jnp.inf)
        rows = similarity_QxB, *(jnp.broadcast_to(x[None], similarity_QxB.shape) for x in (number_B, label_B))
        joined = [jnp.concatenate(pair, axis=1) for pair in zip(best, rows, strict=True)]
        # Of equal entries `top_k` takes the first, which has the lower number.
        similarity_Qxk, place_Qxk = jax.lax.top_k(joined[0], k)
        number_Qxk, label_Qxk = (jnp.take_along_axis(x, place_Qxk, axis=1) for x in joined[1:])
        return (similarity_Qxk, number_Qxk, label_Qxk), None

    none = (
        jnp.full((num_queries, k), -jnp.inf),
        jnp.full((num_queries, k), _NONE, jnp.int32),
        jnp.full((num_queries, k), -1, jnp.int32),
    )
    best, _ = jax.lax.scan(merge, none, (train, number_TxB))
    return jax.tree.map(lambda x: x[None], best)


def _vote(similarity_Qxk: jax.Array, label_Qxk: jax.Array) -> jax.Array:
    """The class with the largest sum of weights; of equal ones the lowest."""
    weight_Qxk = jnp.exp(similarity_Qxk / TEMPERATURE)
    is_same_Qxkxk = label_Qxk[:, :, None] == label_Qxk[:, None, :]
    vote_Qxk = jnp.sum(jnp.where(is_same_Qxkxk, weight_Qxk[:, None, :], 0.0), axis=2)
    wins_Qxk = vote_Qxk == jnp.max(vote_Qxk, axis=1, keepdims=True)
    return jnp.min(jnp.where(wins_Qxk, label_Qxk, _NONE), axis=1)


def _unit(x_NxD: jax.Array) -> jax.Array:
    return x_NxD / jnp.maximum(jnp.linalg.norm(x_NxD, axis=-1, keepdims=True), 1e-12)
