"""Traffic on the slow network between replicas, from compiled programs: with one group on each replica, no more than in
plain training; with one group in total, twice that.
"""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import MESH, VIT, Collective, collectives, sends_between_slices, step_text, without_sources

from benchmarks.tpu_estimates import CHIPS
from gnp_scale.config import GnpConfig
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("unoptimized")

PLAIN, ONE_GROUP, TWO_GROUPS = GnpConfig(alpha=0.0), GnpConfig(), GnpConfig(perturb_groups=2)
# The means over groups reduce each vector that FSDP replicates once for every shard: 0.3 % at this width.
EQUAL = 0.004


@pytest.fixture(scope="module")
def crossing():
    """The collectives of a step on 2 x 4 CPU devices that join devices of both replicas."""
    mesh, found = make_mesh(MESH), {}

    def joins_replicas(group):
        return {place // MESH.fsdp for place in group} == {0, 1}

    def get(gnp) -> list[Collective]:
        if gnp not in found:
            every = collectives(step_text(gnp, mesh))
            found[gnp] = [one for one in every if any(map(joins_replicas, one.groups))]
            # The parameters of a layer are gathered inside the replica.
            assert len(found[gnp]) < len(every)
        return found[gnp]

    return get


def num_bytes(crossing: list[Collective]) -> int:
    """Bytes that each replica sends to the other: those of a reduced array, once for each group that reduces it."""
    return sum(one.num_bytes * len(one.groups) for one in crossing)


@pytest.mark.slow
def test_a_group_for_each_replica_costs_no_more_communication_between_them_than_plain_training(crossing):
    """Every collective of the ascent stays inside its replica; only the mean of u at the end leaves it."""
    (only,) = crossing(TWO_GROUPS)
    assert only.kind == "all-reduce"
    assert num_bytes([only]) == pytest.approx(num_bytes(crossing(PLAIN)), rel=EQUAL)


@pytest.mark.slow
def test_gradients_of_kernels_leave_a_replica_in_shards(crossing):
    """The largest kernel is that of the MLP. What is reduced over all devices are vectors, and small arrays."""
    width = VIT.width
    reduced = [num_entries for one in crossing(PLAIN) for _, num_entries in one.arrays]
    assert max(reduced) == 4 * width**2 // MESH.fsdp


@pytest.mark.slow
def test_one_group_costs_both_gradients_and_one_scalar_more(crossing):
    """The scalar is the perturbed loss. Norms are sums over the shards of a replica."""
    plain, penalised = crossing(PLAIN), crossing(ONE_GROUP)
    assert len(penalised) <= 2 * len(plain)
    num_scalars = [sum(one.num_scalars for one in each) for each in (plain, penalised)]
    assert num_scalars[1] - num_scalars[0] <= 1
    num_gradient_bytes = [num_bytes(each) - 4 * n for each, n in zip((plain, penalised), num_scalars, strict=True)]
    assert num_gradient_bytes[1] == 2 * num_gradient_bytes[0]


@pytest.mark.slow
def test_gathered_for_a_pass_a_kernel_is_not_gathered_again_for_the_backward_pass():
    mesh = make_mesh(MESH)
    layer, whole = (
        [one for one in collectives(step_text(PLAIN, mesh, gather=when)) if one.kind == "all-gather"]
        for when in ("layer", "pass")
    )
    # The first layer has no gradient of its input, so its kernel is gathered once in both.
    assert sum(one.num_bytes for one in whole) == pytest.approx(sum(one.num_bytes for one in layer) / 2, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("gated", [GnpConfig(gate="every"), GnpConfig(gate="window", gate_start=9, perturb_groups=2)])
def test_steps_at_which_the_penalty_is_off_are_plain_steps(gated):
    mesh = make_mesh(MESH)
    texts = [without_sources(step_text(gnp, mesh, StepKind.PLAIN)) for gnp in (gated, PLAIN)]
    assert len(collectives(texts[0])) > 0
    assert texts[0] == texts[1]


@functools.cache
def tpu_text(name):
    """HLO of a step for two TPU slices."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install --no-deps --require-hashes -r requirements/tpu-compiler.txt")
    script = Path(__file__).with_name("compile_for_tpu.py")
    settings = CHIPS["v5e"].environment() | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    command, env = [sys.executable, str(script), name], os.environ | settings
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# `test_budgets.py` counts the bytes between slices of plain training and of one group for each.
@pytest.mark.long
def test_between_tpu_slices_a_group_for_each_costs_what_plain_training_does_and_one_group_twice_that():
    plain, grouped, one = (sends_between_slices(tpu_text(name)) for name in ("plain", "two groups", "one group"))
    assert sum(grouped) == pytest.approx(sum(plain), rel=EQUAL)
    assert len(grouped) <= len(plain)
    assert sum(one) == pytest.approx(2 * sum(plain), rel=EQUAL)
    assert len(one) <= 2 * len(plain) + 1


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "one group", "two groups"])
def test_on_a_tpu_no_parameter_is_transposed_for_its_update(name):
    """XLA would do it, with the moments too, if a gradient were stored in another order."""
    assert re.findall(r" = f32\[\d+,[\d,]+\]\S* copy\(.*op_name=\"state", tpu_text(name)) == []


@pytest.mark.long
def test_on_a_tpu_the_arithmetic_between_the_passes_is_in_kernels():
    """The kernels that `train.kernels` "auto" uses, on shards, in the order of the method."""
    calls = [line for line in tpu_text("one group").splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    names = {match[0] for line in calls for match in re.finditer(r"gnp_\w+?(?=[.\"/ ])", line)}
    assert {"gnp_squared_norm", "gnp_perturb", "gnp_dots", "gnp_blend_update"} <= names
