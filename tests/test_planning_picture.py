"""`gnp-scale plan --plot`: which methods and sizes are compiled, and where they are in the picture."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from gnp_scale.config import Config, ConfigError, DataConfig, GnpConfig, MeshConfig, ModelConfig
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.planning import absent_data, alternatives, picture
from gnp_scale.planning.alternatives import Alternatives, compile_alternatives, mesh_on, method_configs, other_clusters
from gnp_scale.planning.compiled import DoesNotFitError, Memory, compile_step, make_task
from gnp_scale.planning.estimate import Estimate
from gnp_scale.planning.hardware import GIB, Cluster
from gnp_scale.planning.plan import Plan, PlannedStep
from gnp_scale.planning.report import numbers

CONFIG = Config(data=DataConfig(name="imagenet", batch_size=4096, image_size=32), model=ModelConfig("vit_s"))


def step(chip_s, fast_s=0.0, slow_s=0.0, gib=8):
    memory = Memory(gib * GIB // 2, gib * GIB // 2, 0, 0, 0, 0, 0, gib * GIB)
    return PlannedStep(memory, Estimate(1e12, 1e9, chip_s / 2, chip_s, (), fast_s, slow_s), 1e12)


def plan_of(config=CONFIG, topology="v5e:8x8", mesh=None):
    mesh = mesh or MeshConfig(1, 64, 1)
    return Plan(config, Cluster(topology), mesh, {StepKind.PLAIN: step(0.05)}, {StepKind.PLAIN: 100})


def test_the_methods_have_the_recipes_radius_and_alpha_and_a_group_for_each_replica():
    plain = method_configs(plan_of(replace(CONFIG, gnp=GnpConfig(alpha=0.0))))
    assert {name: config.gnp.alpha for name, config in plain.items()} == {"SAM": 1, "GNP": 0.8, "GNP, 64 groups": 0.8}
    assert plain["GNP, 64 groups"].mesh == MeshConfig(64, 1, 1), "a mesh without replicas gets them"
    own = GnpConfig(r=0.2, alpha=None, lam=0.1, gate="every", perturb_groups=4)
    found = method_configs(plan_of(replace(CONFIG, gnp=own), mesh=MeshConfig(4, 8, 2)))
    assert found["GNP"].gnp == GnpConfig(r=0.2, alpha=0.5)
    assert found["GNP, 4 groups"].gnp.perturb_groups == 4
    assert found["GNP, 4 groups"].mesh == MeshConfig(4, 8, 2)


def test_the_sizes_are_those_over_which_the_batch_divides():
    def sizes(plan):
        return [(each.num_chips, each.num_slices) for each in other_clusters(plan)]

    assert sizes(plan_of()) == [(8, 1), (512, 2), (4096, 16)]
    assert sizes(plan_of(topology="v5p:4x4x8")) == [(8, 1), (64, 1), (512, 1), (4096, 1)]
    assert sizes(plan_of(replace(CONFIG, data=replace(CONFIG.data, batch_size=192)))) == [(8, 1)]
    assert sizes(plan_of(topology="h100:8x8")) == [(8, 1), (512, 64), (4096, 512)]


@pytest.mark.parametrize(
    ("mesh", "topology", "expected"),
    [
        (MeshConfig(1, 64, 1), "v5e:2x4", MeshConfig(1, 8, 1)),
        (MeshConfig(1, 64, 1), "v5p:8x8x8", MeshConfig(8, 64, 1)),
        (MeshConfig(64, 1, 1), "v5p:8x8x8", MeshConfig(512, 1, 1)),
        (MeshConfig(2, 16, 2), "v5e:2x4", MeshConfig(1, 4, 2)),
    ],
)
def test_the_parameters_stay_on_as_many_chips(mesh, topology, expected):
    assert mesh_on(mesh, Cluster(topology)) == expected


@pytest.fixture
def compiled(monkeypatch):
    """The configurations that are compiled; 8 chips have too little memory, and 512 are refused."""
    found = []

    def plan_step(config, kind, cluster, mesh):
        found.append((config.gnp.alpha, config.gnp.perturb_groups, cluster.num_chips))
        if cluster.num_chips == 8:
            raise DoesNotFitError(31 * GIB)
        if cluster.num_chips == 512:
            raise ConfigError("the mesh divides nothing")
        return step(6.4 / cluster.num_chips, 0.001, gib=17 if config.gnp.alpha == 1 else 8)

    monkeypatch.setattr(alternatives, "plan_step", plan_step)
    monkeypatch.setattr(alternatives, "make_task", lambda config, dataset: config)
    monkeypatch.setattr(alternatives, "mesh_of", lambda config, cluster: None)
    monkeypatch.setattr(alternatives.jax, "set_mesh", lambda mesh: pytest.MonkeyPatch.context())
    return found


def test_each_step_is_compiled_once_and_what_does_not_fit_is_named(compiled):
    said, config = [], replace(CONFIG, gnp=GnpConfig(r=0.1, alpha=0.8))
    plan = replace(plan_of(config), steps={StepKind.FULL: step(0.1), StepKind.PLAIN: step(0.05)})
    found = compile_alternatives(plan, None, said.append)
    assert compiled == [(1, 1, 64), (0.8, 64, 64), (0.8, 1, 8), (0.8, 1, 512), (0.8, 1, 4096)], "GNP is the plan's step"
    assert len(said) == len(compiled)
    assert list(found.methods) == ["plain", "GNP", "GNP, 64 groups"]
    assert list(found.sizes) == [64, 4096]
    assert found.left_out == {
        "SAM": "needs 17.0 of 15.8 GiB",
        "GNP on 8 chips": "needs 31.0 of 15.8 GiB",
        "GNP on 512 chips": "the mesh divides nothing",
    }
    as_json = json.loads(json.dumps(numbers(plan, "x", found)))["alternatives"]
    assert as_json["chips"]["4096"]["images_per_s"] == pytest.approx(4096 / (6.4 / 4096))
    assert as_json["methods"]["plain"]["memory"]["total"] == 8 * GIB


def test_the_curve_has_the_images_of_each_size_and_the_ideal_ones():
    sizes = {64: step(0.1, 0.02), 512: step(0.0125, 0.02, 0.005)}
    hidden, shown, ideal = picture.curves(plan_of(), sizes).values()
    assert hidden == {64: pytest.approx(40960), 512: pytest.approx(4096 / 0.02)}
    assert shown == {64: pytest.approx(4096 / 0.12), 512: pytest.approx(4096 / 0.0375)}
    assert ideal == {64: pytest.approx(40960), 512: pytest.approx(8 * 40960)}


def test_powers_of_ten_are_short_words():
    assert [picture._word(power) for power in (-1, 0, 2, 3, 5, 6, 9)] == ["0.1", "1", "100", "1k", "100k", "1M", "1G"]


def test_the_bars_are_as_high_as_their_numbers():
    methods = {"plain": step(0.04, 0.01), "GNP": step(0.08, 0.02)}
    drawn = np.asarray(picture.draw_plan(plan_of(), Alternatives(methods, {64: methods["GNP"]}, {}), "a.py:b"))
    place = (picture._PANEL - picture._LEFT - picture._RIGHT) / len(methods)
    above = drawn[: picture._HEIGHT - picture._BOTTOM]

    def height(panel, bar, colour):
        x = round(panel * picture._PANEL + picture._LEFT + (bar + 0.5) * place)
        return np.all(above[:, x] == colour, axis=1).sum()

    # The edges of a box are blurred over a pixel or two.
    blue, red = (31, 119, 180), (214, 39, 40)
    assert height(1, 1, blue) > 100
    assert height(1, 0, blue) == pytest.approx(height(1, 1, blue) / 2, abs=4), "the work of a chip"
    assert height(1, 1, red) == pytest.approx(height(1, 1, blue) / 4, abs=4), "the fast network"
    assert height(0, 0, red) == pytest.approx(height(0, 0, blue), abs=4), "parameters and optimizer"


def test_groups_that_do_not_divide_over_the_mesh_are_one_line():
    data = DataConfig("digits", batch_size=32, eval_batch_size=32)
    model = ModelConfig("vit_mu", patch_size=4, width=32, depth=1, num_heads=2)
    config = Config(data=data, model=model, gnp=GnpConfig(perturb_groups=16))
    with jax.set_mesh(make_mesh(MeshConfig())), pytest.raises(ConfigError, match=r"2 examples of a group .* 8 shards"):
        compile_step(make_task(config, absent_data.load(data, None)), Cluster("v5e:2x4"), StepKind.FULL)
