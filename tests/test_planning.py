"""What `gnp-scale plan` prints and refuses, and its arithmetic against closed forms."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gnp_scale.cli import main
from gnp_scale.config import (
    Config,
    ConfigError,
    DataConfig,
    GnpConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from gnp_scale.data.sources import MissingDataError
from gnp_scale.exit_codes import Exit
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.planning import absent_data, check, compiled, fit
from gnp_scale.planning.compiled import Memory, compile_step, flops_of, local_bytes, make_task
from gnp_scale.planning.estimate import Estimate, _chip_s, _Inside
from gnp_scale.planning.hardware import CHIPS, GIB, Cluster
from gnp_scale.planning.plan import Plan, PlannedStep
from gnp_scale.planning.report import numbers, text
from gnp_scale.planning.variables import environment

ROOT = Path(__file__).parent.parent
VIT = Config(
    data=DataConfig(name="imagenet", batch_size=64, eval_batch_size=64, image_size=64),
    model=ModelConfig("vit_mu", patch_size=16, width=128, depth=3, num_heads=2),
    gnp=GnpConfig(),
    optim=OptimConfig("adamw"),
    train=TrainConfig(num_steps=100),
)


@pytest.mark.parametrize(
    ("name", "num_slices", "sizes"),
    [
        ("v5e:16x16", 1, (256, 64, 256)),
        ("v5e:16x16", 2, (512, 128, 256)),
        ("v5p:8x16x16", 1, (2048, 512, 2048)),
        ("h100:8x16", 1, (128, 16, 8)),
        ("h200:1x1", 1, (1, 1, 1)),
    ],
)
def test_the_sizes_of_a_cluster(name, num_slices, sizes):
    cluster = Cluster(name, num_slices)
    assert (cluster.num_chips, cluster.num_hosts, cluster.slice_size) == sizes


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--topology", "v9:4x4"], "--topology 'v9:4x4' is not known: write it as v5e:16x16"),
        (["--topology", "v5e"], "--topology 'v5e' is not known"),
        (["--topology", "v5e:0x4"], "has no devices: give sizes of at least 1"),
        (["--topology", "v5e:2x2x2"], "v5e has no such slice: give 2 sizes, at most 16x16"),
        (["--topology", "v6e:4x32"], "v6e has no such slice: give 2 sizes, at most 16x16"),
        (["--topology", "v5p:4x4"], "v5p has no such slice: give 3 sizes, at most 16x20x28"),
        (["--topology", "h100:16x2"], "has 16 GPUs in a host: give at most 8, then hosts"),
        (["--topology", "h100:8x99999999"], "has 99999999 hosts: give at most 16384"),
        (["--topology", "h100:8x2x2"], "write it as h100:8x16 for 16 hosts of 8"),
        (["--topology", "h100:8x2", "--num-slices", "2"], "without --num-slices"),
        (["--topology", "v5e:4x4", "--num-slices", "0"], "0 is less than 1"),
        (["--topology", "v5e:4x4", "--model.remats"], "--model.remats"),
        ([], "--topology"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, part, capsys, monkeypatch):
    monkeypatch.setattr("gnp_scale.commands.plan._prepare", lambda topology: None)
    assert main(["plan", "configs/digits.py:quickstart", *arguments]) == Exit.WRONG_CONFIG
    message = capsys.readouterr().err
    assert part in message
    assert message.count("\n") == 1


def test_images_that_are_elsewhere_have_their_published_sizes(tmp_path):
    data = DataConfig(name="imagenet", root=str(tmp_path), image_size=192, batch_size=8, eval_batch_size=8)
    dataset = absent_data.load(data, None)
    assert (dataset.image_shape, dataset.num_classes, len(dataset.train)) == ((192, 192, 3), 1000, 1_281_167)
    own = replace(data, name="own")
    with pytest.raises(ConfigError, match=r"or plan without the images: add --num-classes N"):
        absent_data.load(own, None)
    assert absent_data.load(own, 12).num_classes == 12
    digits = DataConfig(name="digits")
    assert absent_data.load(digits, 10).image_shape == (8, 8, 1), "what is here is read"
    with pytest.raises(ConfigError, match="--num-classes is 99, but digits is here and has 10: leave it out"):
        absent_data.load(digits, 99)


@pytest.mark.parametrize(
    "wrong", [DataConfig("digits", eval_split="foo"), DataConfig("imagenet", synthetic_num_classes=5)]
)
def test_other_mistakes_are_not_taken_for_missing_images(wrong):
    with pytest.raises(ConfigError) as error:
        absent_data.load(wrong, 10)
    assert not isinstance(error.value, MissingDataError)


@pytest.mark.parametrize(
    ("batch_size", "accumulate_steps", "words"),
    [
        (130, 1, "data.batch_size 130 is not divisible by the 8 devices"),
        (64, 16, "1/16 of 64 examples does not divide over 8 shards of the batch"),
    ],
)
def test_a_batch_that_does_not_divide_is_no_traceback(batch_size, accumulate_steps, words, set_mesh):
    set_mesh(fsdp=8)
    data, train = replace(VIT.data, batch_size=batch_size), replace(VIT.train, accumulate_steps=accumulate_steps)
    config = replace(VIT, data=data, train=train)
    with pytest.raises(ConfigError, match=words):
        compile_step(make_task(config, absent_data.load(VIT.data, None)), Cluster("v5e:2x4"), StepKind.PLAIN)


@pytest.mark.parametrize(
    ("json_file", "picture"), [("missing/a.json", "b.png"), ("folder.json", "b.png"), ("a.json", "missing/b.png")]
)
def test_files_that_cannot_be_written_are_named_before_anything_is_compiled(
    json_file, picture, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("gnp_scale.commands.plan._prepare", lambda topology: pytest.fail("it was begun"))
    (tmp_path / "folder.json").mkdir()
    files = ["--json", str(tmp_path / json_file), "--plot", str(tmp_path / picture)]
    assert main(["plan", "configs/digits.py:quickstart", "--topology", "v5e:2x2", *files]) == Exit.WRONG_CONFIG
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("option", "end"), [("--json", ".json"), ("--plot", ".png")])
def test_a_recipe_is_not_replaced_by_a_plan(option, end, tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("# kept")
    command = ["plan", "configs/digits.py:quickstart", "--topology", "v5e:2x2", option, str(recipe)]
    assert main(command) == Exit.WRONG_CONFIG
    expected = f"gnp-scale: {option} is {recipe}: give the name of a file that ends in {end}\n"
    assert (capsys.readouterr().err, recipe.read_text()) == (expected, "# kept")


@pytest.fixture(scope="module")
def task():
    with jax.set_mesh(make_mesh(MeshConfig())):
        yield make_task(VIT, absent_data.load(VIT.data, None))


def test_flops_are_those_of_the_closed_form(task):
    """Within 2 %: a plain step is three forward passes, a penalised one six."""
    width, depth, tokens, classes = 128, 3, 16, 1000
    block = 12 * width**2 * tokens + 2 * tokens**2 * width
    forward = 2 * VIT.data.batch_size * (depth * block + tokens * 16 * 16 * 3 * width + width * classes)
    # The gradient by the images is not computed.
    first = 2 * VIT.data.batch_size * tokens * 16 * 16 * 3 * width
    assert flops_of(task, StepKind.PLAIN) == pytest.approx(3 * forward - first, rel=0.02)
    assert flops_of(task, StepKind.FULL) <= 2.005 * flops_of(task, StepKind.PLAIN)


def test_flops_of_a_network_without_attention(task):
    config = replace(VIT, model=ModelConfig("resnet18", num_bn_groups=8), optim=OptimConfig("sgd"))
    network = make_task(config, task.dataset)
    assert flops_of(network, StepKind.PLAIN) == pytest.approx(network.flops_per_pass, rel=0.03)


def test_recomputation_costs_a_forward_pass_of_the_blocks(task):
    remat = make_task(replace(VIT, model=replace(VIT.model, remat="block")), task.dataset)
    scanned = make_task(replace(VIT, model=replace(VIT.model, remat="block", scan_layers=True)), task.dataset)
    plain, again, scan = (flops_of(each, StepKind.PLAIN) for each in (task, remat, scanned))
    assert plain * 1.2 < again < plain * 4 / 3
    assert scan == pytest.approx(again, rel=0.02), "the body of the scan counts for each layer"


@pytest.mark.slow
def test_bytes_of_a_state_are_those_of_its_shards(task):
    state = task.init_state()
    for tree, abstract in ((state.params, task.abstract_state().params), (state, task.abstract_state())):
        on_first = sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(tree))
        assert local_bytes(abstract) == on_first


def test_the_time_of_a_gpu_is_that_of_products_and_of_other_traffic():
    chip = CHIPS["h200"]
    inside = _Inside(num_bytes=5e9, product_bytes=1e9, kernel_bytes=0, cycles=0)
    products_s = 7.18e12 / 718e12
    assert _chip_s(chip, 7.18e12, inside) == pytest.approx(products_s + 4e9 / 3880e9, rel=1e-3)
    assert _chip_s(CHIPS["v5e"], 1e12, _Inside(5e9, 0, 819e9, 1.5e9)) == pytest.approx(1 + 1)


def planned(total, chip_s=0.1, fast_s=0.02, slow_s=0.0, model_flops=1e12):
    memory = Memory(total // 4, total // 4, 0, 0, total // 4, total // 4, 0, total)
    return PlannedStep(memory, Estimate(model_flops, 1e9, chip_s / 2, chip_s, (), fast_s, slow_s), model_flops)


@pytest.fixture
def plan():
    steps = {StepKind.FULL: planned(12 * GIB, 0.2, 0.3), StepKind.PLAIN: planned(8 * GIB)}
    counts = {StepKind.FULL: 900, StepKind.PLAIN: 100}
    return Plan(VIT, Cluster("v5e:4x4"), MeshConfig(1, 16, 1), steps, counts)


def test_what_follows_for_the_run(plan):
    assert plan.fits
    assert plan.hours == (pytest.approx((900 * 0.3 + 100 * 0.1) / 3600), pytest.approx((900 * 0.5 + 100 * 0.12) / 3600))
    assert plan.penalty_cost == pytest.approx((900 * 0.3 + 100 * 0.1) / (1000 * 0.1))
    assert plan.images_per_s(StepKind.PLAIN) == pytest.approx(640)
    assert plan.mfu(StepKind.PLAIN) == pytest.approx(1e12 / 0.1 / 197e12)
    assert plan.cores_per_host == pytest.approx(640 / 4 / 500)
    assert [step.estimate.bound for step in plan.steps.values()] == ["fast network", "compute"]
    too_large = replace(plan, steps=plan.steps | {StepKind.FULL: planned(20 * GIB)})
    assert not too_large.fits
    assert "does not fit: 20.00 of 15.75 GiB, 4.25 GiB too much" in text(too_large, "x")


def test_the_plan_as_json_has_what_its_text_has(plan):
    found = json.loads(json.dumps(numbers(plan, "a.py:b")))
    assert found["steps"]["penalised"]["memory"]["total"] == 12 * GIB
    assert found["mesh"] == {"replica": 1, "fsdp": 16, "tensor": 1}
    assert "fits: 12.00 of 15.75 GiB, 3.75 GiB free" in text(plan, "a.py:b")
    assert "not measured" in text(plan, "a.py:b")


def test_a_small_plan_has_small_units(plan):
    steps = {kind: planned(12 << 20, 2e-3, 0) for kind in plan.steps}
    said = text(replace(plan, steps=steps, cluster=Cluster("v5e:1x1")), "a.py:b")
    assert "1 chip of 1 host, mesh" in said
    assert "memory of a chip, MiB" in said
    assert re.search(r"^peak +12\.00 ", said, re.MULTILINE)
    assert "the run: 2.0 seconds to 2.0 seconds" in said


def test_the_kinds_of_memory_add_up_to_the_peak_and_the_program_is_one_of_them(set_mesh):
    """A program of a small network is larger than all arrays. A compiler's figures have it beside them."""
    set_mesh()
    data = replace(VIT.data, batch_size=8)
    task = make_task(replace(VIT, data=data), absent_data.load(data, None))
    stats = SimpleNamespace(
        argument_size_in_bytes=0, total_allocation_bytes=10**8, generated_code_size_in_bytes=2 * 10**8
    )
    memory = compiled._memory(stats, task.abstract_state(), task.abstract_batch(), 2)
    assert memory.total == 3 * 10**8
    assert sum(asdict(memory).values()) == 2 * memory.total
    assert memory.activations > 0


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (2.00G) exceeds", 2 * GIB + 7),
        ("Used 3.50G of 2.00G hbm.", 3.5 * GIB),
    ],
)
def test_what_a_refused_program_needs_is_read_with_its_arguments(text, needed):
    refusal = compiled._refusal(jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {text}"), 7)
    assert refusal.needed_bytes == needed


def test_changes_are_tried_in_order_until_the_run_fits(monkeypatch):
    cluster, config, tried = Cluster("v5e:4x4"), replace(VIT, mesh=MeshConfig(replica=4)), []

    def needed(config, cluster, dataset):
        tried.append((config.model.remat, config.mesh.replica, config.train.accumulate_steps))
        if config.train.accumulate_steps == 2:
            raise ConfigError("two microbatches do not divide")
        return 20 * GIB // len(tried)

    monkeypatch.setattr(fit, "needed_bytes", needed)
    said = []
    assert fit.fit(config, cluster, None, said.append) == ["--model.remat", "dots"]
    assert tried == [("none", 4, 1), ("dots", 4, 1)]
    tried.clear()
    monkeypatch.setattr(fit, "needed_bytes", lambda *args: max(needed(*args), (16 if len(tried) < 7 else 1) * GIB))
    flags = ["--model.remat", "offload", "--mesh.replica", "1", "--mesh.fsdp", "-1", "--train.accumulate-steps", "4"]
    assert fit.fit(config, cluster, None, said.append) == flags
    assert [remat for remat, replica, _ in tried if replica == 4] == ["none", "dots", "block", "offload"]
    assert any("not possible: two microbatches do not divide" in line for line in said)
    monkeypatch.setattr(fit, "needed_bytes", lambda *args: 99 * GIB)
    with pytest.raises(ConfigError, match="choose more chips, a smaller batch"):
        fit.fit(config, cluster, None, said.append)


def test_nothing_is_compiled_where_the_state_alone_is_too_large(task, monkeypatch):
    arguments = local_bytes((task.abstract_state(), task.abstract_batch()))
    monkeypatch.setattr(fit, "compile_step", lambda *_: pytest.fail("it was compiled"))
    monkeypatch.setattr(fit, "mesh_of", lambda *_: make_mesh(MeshConfig()))
    cluster, said = Cluster("v5e:1x1"), []
    object.__setattr__(cluster, "chip", replace(cluster.chip, memory_bytes=arguments - 1))
    with pytest.raises(ConfigError, match="choose more chips"):
        fit.fit(VIT, cluster, task.dataset, said.append)
    assert len(said) > 3
    assert all(f"at least {arguments / GIB:.2f} of" in line for line in said if "not possible" not in line)


def test_a_change_that_is_not_possible_is_not_kept(monkeypatch):
    def needed(config, cluster, dataset):
        if config.mesh.replica == 1:
            raise ConfigError("4 groups do not divide")
        return (99 if config.train.accumulate_steps < 4 else 1) * GIB

    monkeypatch.setattr(fit, "needed_bytes", needed)
    flags = fit.fit(replace(VIT, mesh=MeshConfig(replica=4)), Cluster("v5e:4x4"), None, print)
    assert flags == ["--model.remat", "offload", "--train.accumulate-steps", "4"]


@pytest.mark.parametrize(
    ("model", "topology", "remat"),
    [
        (ModelConfig("vit_mu", remat="block"), "v5e:4x4", ["offload"]),
        (ModelConfig("vit_mu"), "h100:8x2", ["dots", "block"]),
        (ModelConfig("vit_mu", remat="offload"), "h100:8x2", []),
        (ModelConfig("cnn_s"), "v5e:4x4", []),
    ],
)
def test_a_fit_recomputes_more_than_the_run_does_where_its_network_and_chip_can(model, topology, remat, monkeypatch):
    monkeypatch.setattr(fit, "needed_bytes", lambda *_: GIB if len(said) == len(remat) + 1 else 999 * GIB)
    said = []
    flags = fit.fit(replace(VIT, model=model), Cluster(topology), None, said.append)
    assert flags == [*(["--model.remat", remat[-1]] if remat else []), "--train.accumulate-steps", "2"]
    assert [line.split()[1].removesuffix(":") for line in said[1:-1]] == remat


def test_a_run_that_differs_from_its_plan_is_refused(plan, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(numbers(plan, "a.py:b")))
    found = check.read(file)
    with pytest.raises(ConfigError, match=r"the plan is for 16 x TPU v5 lite, and here are 8 x cpu"):
        check.check_run(found, VIT)
    here = found | {"device_kind": "cpu", "num_chips": 8}
    with pytest.raises(ConfigError, match="the plan has the mesh"):
        check.check_run(here, VIT)
    here["mesh"] = {"replica": 1, "fsdp": 8, "tensor": 1}
    check.check_run(here, replace(VIT, train=replace(VIT.train, log_every_steps=7)))
    with pytest.raises(ConfigError, match=r"differs from its plan in model\.remat, optim\.name"):
        check.check_run(here, replace(VIT, model=replace(VIT.model, remat="block"), optim=OptimConfig("sgd")))
    with pytest.raises(ConfigError, match=r"differs from its plan in (\S+, ){7}\S+ and \d+ more: plan it again"):
        check.check_run(here | {"config": {}}, VIT)
    file.write_text("{}")
    with pytest.raises(ConfigError, match="holds no plan"):
        check.read(file)


STEP = {"num_steps": 1, "shortest_s": 1.0, "longest_s": 2.0, "memory": {"total": 1}}


@pytest.mark.parametrize(
    "change",
    [
        {"config": []},
        {"steps": None},
        {"steps": {}},
        {"steps": {"plain": {"num_steps": 1}}},
        pytest.param({"steps": {"plain": STEP | {"shortest_s": 10**400}}}, id="a time beyond float64"),
        pytest.param({"steps": {"plain": STEP | {"longest_s": math.nan}}}, id="no time"),
        {"num_chips": "many"},
        {"mesh": None},
    ],
    ids=str,
)
def test_a_plan_that_lacks_what_the_end_of_the_run_needs_is_refused_at_its_start(change, plan, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(numbers(plan, "a.py:b") | change))
    with pytest.raises(ConfigError, match="holds no plan"):
        check.read(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="holds no plan"):
        check.read(file)


def test_measured_times_stand_beside_the_planned_ones(plan):
    found, rows = numbers(plan, "a.py:b"), [{"step": 50, "perf/step_ms": 900.0}, {"step": 150, "perf/step_ms": 300.0}]
    assert check.comparison(found, rows, None) == "planned 280.0 to 462.0 ms a step, measured 300.0 ms"
    assert "planned 12.00 GiB on a device, used 11.00 GiB" in check.comparison(found, rows, 11 * GIB)
    assert check.comparison(found, rows[:1], None) is None


def run_plan(tmp_path, *arguments):
    file = tmp_path / "plan.json"
    command = [sys.executable, "-m", "gnp_scale.cli", "plan", *arguments, "--json", str(file)]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    return done, json.loads(file.read_bytes()) if file.exists() else None


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the TPU compiler: make tpu-compiler")
@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:1x1"])
def test_the_compiler_knows_slices_of_one_chip(topology):
    script = (
        "import sys; from gnp_scale.planning.hardware import Cluster; print(len(Cluster(sys.argv[1], 2).devices()))"
    )
    command, env = [sys.executable, "-c", script, topology], os.environ | environment(topology)
    assert subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout == "2\n"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the TPU compiler: make tpu-compiler")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_plan_that_is_stopped_ends_at_once_and_silently(number):
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("was started by nohup, and so is the plan")
    command = [sys.executable, "-m", "gnp_scale.cli", "plan", "configs/digits.py:quickstart", "--topology", "v5e:2x2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "gnp-scale: compiling the steps for v5e:2x2: may take minutes\n"
        process.send_signal(number)
        assert (process.stderr.read(), process.wait()) == ("", -number)


SMALL = ["--model.width", "256", "--model.depth", "1", "--model.num-heads", "2", "--train.num-steps", "10"]
SMALL += ["--optim.warmup-steps", "1", "--data.batch-size", "64", "--data.image-size", "32"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the TPU compiler: make tpu-compiler")
def test_a_plan_for_tpus_from_the_command_line(tmp_path):
    """The real compiler, for eight chips in two slices: sizes of the state, and which collectives leave a slice."""
    arguments = ["configs/imagenet_no_aug.py:vit_b16_gnp", "--topology", "v5e:2x2", "--num-slices", "2", *SMALL]
    done, found = run_plan(tmp_path, *arguments, "--mesh.replica", "2", "--gnp.perturb-groups", "2")
    assert done.returncode == Exit.FINISHED, done.stderr
    assert done.stdout.startswith("configs/imagenet_no_aug.py:vit_b16_gnp")
    assert "mesh replica 2 x fsdp 4 x tensor 1" in done.stdout
    step = found["steps"]["penalised"]
    assert step["memory"]["total"] == pytest.approx(sum(step["memory"].values()) / 2, rel=1e-6)
    assert found["fits"]
    assert {(tuple(each["axes"]), each["is_slow"]) for each in step["traffic"]} >= {(("fsdp",), False)}
    assert all("replica" in each["axes"] for each in step["traffic"] if each["is_slow"])
    assert step["slow_s"] > 0
    assert math.isfinite(found["hours"][1])
    assert np.isclose(found["steps"]["penalised"]["flops"] / found["steps"]["plain"]["flops"], 2, rtol=0.0025)
