"""Triton's compilers on the leaves of real networks: wide accesses, no spills. Nothing is run."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from gnp_kernels import AdamW, Sgd, blend_update, dots, perturb, squared_norm

from gnp_scale.config import ModelConfig
from gnp_scale.models import registry

triton_compiled = pytest.importorskip(
    "triton_compiled", reason="needs the GPU compilers: make gpu-compiler", exc_type=ModuleNotFoundError
)

F32, BF16 = jnp.float32, jnp.bfloat16
RATES = {"c1": 0.2, "c2": 0.8, "learning_rate": 0.1, "implementation": "triton"}


def like(tree, dtype):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    knobs = triton_compiled.triton.knobs
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


@functools.cache
def parameters(model):
    if model == "ragged":
        return [jax.ShapeDtypeStruct(shape, F32) for shape in ((33, 5), (4096,), (1001,))]
    network = registry.create(ModelConfig(model), (224, 224, 3), 1000, 64)
    return jax.tree.leaves(jax.eval_shape(lambda: network.init(jax.random.key(0))[0]))


def update(w, g, rule, **options):
    moments = (like(w, F32),) * rule.num_moments
    return triton_compiled.launches(
        lambda w, g1, g2, moments: blend_update(w, g1, g2, moments, rule=rule, **RATES, **options), w, g, g, moments
    )


def norm(w, dtype, weights=None):
    op = functools.partial(squared_norm, implementation="triton")
    return triton_compiled.launches(lambda a, b: op(a, weights=b), like(w, dtype), weights)


def moved(w, grad, **options):
    op = functools.partial(perturb, implementation="triton", **options)
    return triton_compiled.launches(op, w, like(w, grad), jax.ShapeDtypeStruct((), F32))


ADAMW = AdamW(weight_decay=0.1)
OPS = {
    "norm f32": lambda w: norm(w, F32),
    "weighted norm bf16": lambda w: norm(w, BF16, weights=w),
    "dots f32": lambda w: triton_compiled.launches(functools.partial(dots, implementation="triton"), w, w),
    "perturb f32": lambda w: moved(w, F32),
    "perturb bf16": lambda w: moved(w, BF16, dtype=BF16),
    "perturb adaptive": lambda w: moved(w, F32, dtype=BF16, adaptive=True),
    "sgd f32": lambda w: update(w, w, Sgd(0.9, True, 0.1)),
    "adamw f32": lambda w: update(w, w, ADAMW),
    "adamw bf16": lambda w: update(w, like(w, BF16), ADAMW, copy_dtype=BF16),
}
"""The launches of every operation for a list of parameters."""

NUM_LAUNCHES = {"norm": 1, "weighted": 1, "dots": 1, "perturb": 1, "sgd": 2, "adamw": 2}
"""Without the launch that adds up the parts of sums."""


def accesses(kernel):
    return Counter(re.findall(r"\b((?:ld|st)\.global\S*)", kernel.asm["ptx"]))


CASES = [*((op, "vit_b") for op in OPS), *((op, "resnet50") for op in ("norm f32", "perturb bf16", "sgd f32"))]
USUAL_CASES = {
    *((op, "vit_b") for op in ("norm f32", "dots f32", "perturb bf16", "adamw bf16")),
    ("sgd f32", "resnet50"),
}
"""Each operation once, and each rule."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "model"),
    [pytest.param(*case, marks=[] if case in USUAL_CASES else pytest.mark.long) for case in CASES],
)
def test_on_an_h100_every_access_to_a_leaf_is_16_bytes_wide_and_nothing_spills(op, model):
    """With 150 leaves in one launch. Only loads of scalars and stores of partial sums have 4 bytes."""
    launches = OPS[op](parameters(model))
    kernels = [launch for launch in launches if not launch.name.endswith("totals")]
    assert len(kernels) == NUM_LAUNCHES[op.split()[0]]
    kernel = triton_compiled.compiled(kernels[0], "sm_90")
    # There is one branch for each leaf: they were not merged.
    assert len(re.findall(r"^\s*// \d+$", kernel.asm["ptx"], re.MULTILINE)) == len(kernels[0].operands[0])
    found = accesses(kernel)
    num_scalars, num_sums = found.pop("ld.global.b32", 0), found.pop("st.global.b32", 0)
    assert num_scalars <= 6
    assert num_sums == {"norm": 1, "weighted": 1, "dots": 3, "perturb": 0}.get(op.split()[0], 2)
    assert found.keys() <= {"ld.global.v4.b32", "st.global.v4.b32"}, found
    used = triton_compiled.resources(kernel)
    assert used.num_spilled_bytes == 0
    assert used.occupancy(kernels[0].num_warps) >= 0.5, used
    # Each is rounded separately, and to nearest even, with any assembler.
    assert not re.findall(r"\b(?:fma|(?:add|sub|mul)(?!\.rn))\S*\.f32", kernel.asm["ptx"])
    assert set(re.findall(r"cvt\.(\w+)\.bf16x2", kernel.asm["ptx"])) <= {"rn"}


@pytest.mark.slow
@pytest.mark.parametrize("target", triton_compiled.TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_every_kernel_compiles_for_every_gpu(op, target):
    """For leaves of which some end in a partial vector, and with the launch that adds up parts of sums."""
    for launch in OPS[op](parameters("ragged")):
        kernel = triton_compiled.compiled(launch, target)
        if target == "gfx942":
            assert set(re.findall(r"_spill_count:\s*(\d+)", kernel.asm["amdgcn"])) == {"0"}
        else:
            assert triton_compiled.resources(kernel).num_spilled_bytes == 0


def test_leaves_that_end_within_a_vector_keep_16_bytes_up_to_there():
    """An update in float32 reads 5 arrays and writes 3: 2 accesses of each by 16 bytes, and 1 by 4 for the rest."""
    (ragged, _), (aligned, _) = (OPS["adamw f32"](w) for w in (parameters("ragged"), parameters("ragged")[1:2]))
    found = accesses(triton_compiled.compiled(ragged, "sm_90")) - accesses(triton_compiled.compiled(aligned, "sm_90"))
    assert (ragged.constants["is_ragged"], aligned.constants["is_ragged"]) == (True, False)
    assert found == {"ld.global.b32": 5, "st.global.b32": 3}
