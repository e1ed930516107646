"""The points of a grid, the names of their folders, and what a sweep folder accepts."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnp_scale import recipe
from gnp_scale.config import Config, ConfigError
from gnp_scale.sweeps.grid import flags_of, make_points, name_of, parse_axis, text_of, with_values
from gnp_scale.sweeps.record import Sweep, keep, read


def points(*axes, flags=()):
    return make_points(Config(), flags, axes)


def test_a_grid_is_a_product_whose_last_axis_varies_fastest():
    found = points("gnp.r=0.05,1e-1", "train.seed=0,1")
    assert list(found) == [
        "gnp.r=0.05,train.seed=0",
        "gnp.r=0.05,train.seed=1",
        "gnp.r=0.1,train.seed=0",
        "gnp.r=0.1,train.seed=1",
    ]
    values, config = found["gnp.r=0.1,train.seed=1"]
    assert (values, config.gnp.r, config.train.seed) == ({"gnp.r": 0.1, "train.seed": 1}, 0.1, 1)


AXES = {
    "model.scan-layers=true,false": [True, False],
    "optim.clip_norm=none,2": [None, 2.0],
    "optim.step-boundaries=0.3 0.6,0.5": [(0.3, 0.6), (0.5,)],
    "data.policy=none,randaugment": ["none", "randaugment"],
    "optim.learning_rate=1e-5": [1e-5],
}


@pytest.mark.parametrize("axis", AXES)
def test_values_of_each_kind_reach_the_configuration_and_its_flags(axis):
    found = points(axis)
    key = parse_axis(axis)[0]
    assert [recipe.flatten(config)[key] for _, config in found.values()] == AXES[axis]
    for values, config in found.values():
        assert recipe.override(Config(), flags_of(values)) == config == with_values(Config(), values)


def test_options_that_only_a_point_makes_possible_are_possible():
    """The recipe with the flags alone has more warm-up than steps."""
    flags = ("--train.num-steps", "20", "--optim.warmup-steps", "1")
    assert list(points("train.num_steps=30,40", flags=flags[2:]))


WRONG = {
    ("gnp.r",): "write it as",
    ("gnp.r=",): "write it as",
    ("gnp.r=0.1,,0.2",): "write it as",
    ("gnp.r=0.1,0.1",): "twice",
    ("gnp.r=0.1,0.10",): "twice",
    ("gnp.r=0.1", "gnp.r=0.2"): "an axis twice",
    ("gnp.raduis=0.1",): "there is no option --gnp.raduis",
    ("gnp.r=0.1,x",): "--gnp.r is 'x': give a number",
    ("gnp.r=0.1,-1",): "gnp.r is -1.0",
    ("model.scan_layers=true,1",): "give true or false",
    (): "needs an axis",
    ("data.root=" + 300 * "x",): "has 310 characters",
}


@pytest.mark.parametrize("axes", WRONG)
def test_a_wrong_axis_is_one_line(axes):
    with pytest.raises(ConfigError) as error:
        points(*axes)
    assert WRONG[axes] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_misspelt_flag_may_mean_one_of_the_command_itself():
    with pytest.raises(ConfigError, match=r"there is no option --run-dir: did you mean --sweep-dir\?"):
        points("gnp.r=0.1", flags=["--run-dir", "x"])


def test_a_flag_must_not_contradict_an_axis():
    with pytest.raises(ConfigError, match=r"--model\.no-scan-layers is also an axis"):
        points("model.scan_layers=true,false", flags=["--model.no-scan-layers"])


KEYS = st.sampled_from(sorted(recipe.flatten(Config())))
VALUES = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=4),
    st.lists(st.floats(0, 1, width=16), max_size=2).map(tuple),
)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=2))
def test_a_name_is_a_safe_name_of_a_folder_from_which_the_values_can_be_read(values):
    name = name_of(values)
    assert re.fullmatch(r"[A-Za-z0-9._+~=,-]+", name)
    read_back = {}
    for part in name.split(","):
        key, _, text = part.partition("=")
        read_back[key] = bytes.fromhex(re.sub("~(..)|(.)", lambda m: m[1] or m[2].encode().hex(), text)).decode()
    assert read_back == {key: text_of(value) for key, value in values.items()}


def test_a_name_has_no_separators_of_paths_and_all_digits_of_a_number():
    assert name_of({"data.root": "a/b ~%"}) == "data.root=a~2fb~20~7e~25"
    assert name_of({"gnp.r": 0.1 + 0.2}) == "gnp.r=0.30000000000000004"


@settings(max_examples=20)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=3, unique=True))
def test_every_float_reaches_its_point_exactly(values):
    assert [
        value["optim.learning_rate"]
        for value, _ in points(f"optim.learning_rate={','.join(map(repr, values))}").values()
    ] == values


def sweep(*axes, flags=()):
    found = make_points(Config(), flags, axes)
    config = next(config for _, config in found.values())
    return Sweep("a.py:b", tuple(flags), config, {name: values for name, (values, _) in found.items()})


def test_a_sweep_is_read_as_it_was_kept(tmp_path):
    kept, names = keep(tmp_path / "new" / "folder", sweep("optim.step_boundaries=0.3 0.6,0.5", "gnp.r=0.1"))
    assert read(tmp_path / "new" / "folder") == kept
    assert names == list(kept.points)
    assert read(tmp_path) is None


def test_a_sweep_grows_by_values_in_any_order_of_its_axes(tmp_path):
    keep(tmp_path, sweep("gnp.r=0.1", "train.seed=0"))
    kept, names = keep(tmp_path, sweep("train.seed=0,1", "gnp.r=0.2"))
    assert names == ["gnp.r=0.2,train.seed=0", "gnp.r=0.2,train.seed=1"]
    assert list(kept.points) == ["gnp.r=0.1,train.seed=0", *names]
    assert kept.config_of(names[1]).gnp.r == 0.2
    folder = Path("s")
    assert kept.arguments(names[1], folder) == [
        *("a.py:b", "--gnp.r", "0.2", "--train.seed", "1", "--run-dir", f"s/{names[1]}")
    ]


TOGETHER = {
    "of two sections": (
        ("train.num_steps=8", "optim.warmup_steps=7"),
        ("train.num_steps=6", "optim.warmup_steps=1"),
    ),
    "of one section": (("gnp.alpha=none", "gnp.lam=0.05"), ("gnp.alpha=0.8", "gnp.lam=none")),
}


@pytest.mark.parametrize("axes", TOGETHER.values(), ids=TOGETHER)
def test_values_that_are_possible_only_together_are_added(tmp_path, axes):
    for texts in (axes, axes[::-1]):
        folder = tmp_path / texts[0][0]
        keep(folder, sweep(*texts[0]))
        kept, (name,) = keep(folder, sweep(*texts[1]))
        assert read(folder) == kept
        assert kept.config_of(name) == sweep(*texts[1]).config


def test_a_point_that_the_recorded_configuration_makes_impossible_is_not_recorded(tmp_path):
    """Flags of `divergence` may change, but a sweep keeps those that it began with."""
    keep(tmp_path, sweep("divergence.max_rollbacks=3"))
    before = (tmp_path / "sweep.json").read_bytes()
    other = sweep("divergence.max_rollbacks=5", flags=["--divergence.policy", "rollback"])
    with pytest.raises(ConfigError, match=r"began with other settings \(divergence\.max_rollbacks is 5, .*: choose"):
        keep(tmp_path, other)
    assert (tmp_path / "sweep.json").read_bytes() == before


REFUSED = {
    "another axis": (sweep("gnp.alpha=0.1"), "varies gnp.r, not gnp.alpha"),
    "one more axis": (sweep("gnp.r=0.1", "train.seed=0"), "varies gnp.r, not gnp.r, train.seed"),
    "another value of the recipe": (sweep("gnp.r=0.1", flags=["--gnp.alpha", "0.3"]), "gnp.alpha 0.8 -> 0.3"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_folder_belongs_to_one_recipe_and_its_axes(tmp_path, change):
    keep(tmp_path, sweep("gnp.r=0.2"))
    before = (tmp_path / "sweep.json").read_bytes()
    other, message = REFUSED[change]
    with pytest.raises(ConfigError, match=message):
        keep(tmp_path, other)
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_another_recipe_is_named_also_if_it_makes_the_recorded_points_impossible(tmp_path):
    keep(tmp_path, sweep("optim.warmup_steps=50", flags=["--train.num-steps", "60"]))
    with pytest.raises(ConfigError, match=r"another recipe \(train\.num_steps 60 -> 20\)"):
        keep(tmp_path, sweep("optim.warmup_steps=5", flags=["--train.num-steps", "20"]))


def test_what_affects_only_where_a_run_computes_may_change(tmp_path):
    keep(tmp_path, sweep("gnp.r=0.2"))
    kept, _ = keep(tmp_path, sweep("gnp.r=0.2", flags=["--train.kernels", "xla"]))
    assert kept.flags == ("--train.kernels", "xla")


@pytest.mark.parametrize("damage", ["{", "no points", "unknown key", "[" * 100_000], ids=lambda text: text[:12])
def test_a_damaged_record_is_one_line(damage, tmp_path):
    keep(tmp_path, sweep("gnp.r=0.2"))
    stored = json.loads((tmp_path / "sweep.json").read_text())
    points = {"no points": {}, "unknown key": {"a": {"train.nope": 1}}}.get(damage)
    (tmp_path / "sweep.json").write_text(damage if points is None else json.dumps(stored | {"points": points}))
    with pytest.raises(ConfigError, match=r"sweep\.json cannot be read"):
        keep(tmp_path, sweep("gnp.r=0.2"))
