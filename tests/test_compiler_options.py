"""XLA's options for the steps: set by platform, and left to the user where XLA_FLAGS names them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.config import Config, DataConfig, GnpConfig, MeshConfig, ModelConfig
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.models.layouts import with_fast_gradient
from gnp_scale.training import compilation
from gnp_scale.training.compilation import compiler_options
from gnp_scale.training.setup import Task
from gnp_scale.training.state import initial_key
from gnp_scale.training.step import make_train_step

LEVEL = "xla_backend_optimization_level"
YNN = "xla_cpu_experimental_ynn_fusion_type"


def test_a_flag_of_the_user_is_not_overridden(monkeypatch):
    assert set(compiler_options()) == {YNN}
    assert compiler_options(runs_once=True) == {LEVEL: "1"}
    monkeypatch.setenv("XLA_FLAGS", f"--{LEVEL}=2 --{YNN}=LIBRARY_FUSION_TYPE_DOT")
    assert compiler_options() == compiler_options(runs_once=True) == {}


def test_where_optimizations_are_disabled_no_level_is_given():
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        assert compiler_options(runs_once=True) == {}
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_have_the_defaults_of_xla(platform, monkeypatch):
    """An option of another platform may be unknown to a compiler."""
    monkeypatch.setattr(compilation, "platform", lambda: platform)
    assert compiler_options() == compiler_options(runs_once=True) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [ModelConfig("vit_mu", depth=1), pytest.param(ModelConfig("resnet20"), marks=pytest.mark.long)],
    ids=lambda model: model.name,
)
def test_initial_parameters_have_the_bits_of_a_program_with_all_optimizations(model):
    data = DataConfig("synthetic", batch_size=16, eval_batch_size=16, synthetic_num_examples=16)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices())):
        task = Task.of(Config(data=data, model=model))
        own = task.init_state().params
        init = jax.jit(lambda: task.model.init(initial_key(task.config.train.seed))[0])
        all_optimizations = init.lower().compile(compiler_options={LEVEL: "3"})()
    jax.tree.map(np.testing.assert_array_equal, own, all_optimizations)


@pytest.mark.slow
def test_convolutions_are_not_given_to_ynnpack():
    """They stay outside of its fusions; products and sums are in them."""
    config = Config(
        data=DataConfig(name="synthetic", batch_size=16, eval_batch_size=16, synthetic_num_examples=16),
        model=ModelConfig("resnet18", stem="cifar"),
        gnp=GnpConfig(alpha=0.0),
    )
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        task = Task.of(config)
        lowered = make_train_step(task).lower(task.abstract_state(), task.abstract_batch(), kind=StepKind.PLAIN)
    text = lowered.compile().as_text()
    outside = text[text.index("\nENTRY") :].count(" convolution(")
    assert outside == text.count(" convolution(") > 50
    assert "__ynn_fusion" in text


@pytest.mark.parametrize(
    ("formula", "size", "num_in"),
    [("bnd,df->bnf", (8, 16, 32), 32), ("bhwc,cf->bhwf", (8, 4, 4, 32), 32), ("bnd,nf->bdf", (8, 16, 32), 16)],
)
def test_gradients_of_matrices_are_given_to_ynnpack(formula, size, num_in):
    """XLA leaves those of the plain product outside of its fusions; numbers are equal up to the order of sums."""
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=size).astype(np.float32), random.normal(size=(num_in, 48)).astype(np.float32)

    def gradient(form):
        def loss(kernel, x):
            written, factor = form(formula, kernel)
            return jnp.sum(jnp.sin(jnp.einsum(written, x, factor)))

        return jax.jit(jax.grad(loss)).lower(kernel, x).compile(compiler_options=compiler_options())

    plain, own = gradient(lambda *as_written: as_written), gradient(with_fast_gradient)
    assert num_products_outside(plain) == 1, "XLA does it by itself now: remove `with_fast_gradient`"
    assert num_products_outside(own) == 0
    np.testing.assert_allclose(own(kernel, x), plain(kernel, x), rtol=1e-5, atol=1e-4)


def num_products_outside(compiled) -> int:
    """Those that are not in fusions of YNNPACK."""
    return compiled.as_text().partition("\nENTRY")[2].count(" dot(")
