"""XLA's options for the steps: set by platform, and left to the user where XLA_FLAGS names them."""

import jax
import pytest

from gnp_scale.config import Config, DataConfig, GnpConfig, MeshConfig, ModelConfig
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.training import compilation
from gnp_scale.training.compilation import compiler_options
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

YNN = "xla_cpu_experimental_ynn_fusion_type"


def test_a_flag_of_the_user_is_not_overridden(monkeypatch):
    assert set(compiler_options()) == {YNN}
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x --{YNN}=LIBRARY_FUSION_TYPE_DOT")
    assert compiler_options() == {}


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_have_the_defaults_of_xla(platform, monkeypatch):
    """An option of another platform may be unknown to a compiler."""
    monkeypatch.setattr(compilation, "platform", lambda: platform)
    assert compiler_options() == {}


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
