"""Mistakes in a configuration are one line that names what was given and what to change; nothing is guessed."""

import dataclasses
import json
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnp_scale import recipe
from gnp_scale.config import Config, ConfigError, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.run.run_dir import claimed, stored_config

WRONG_FLAGS = {
    "misspelt key": ("--data.batchsize 64", "did you mean --data.batch-size"),
    "misspelt section": ("--dta.batch-size 64", "did you mean --data.batch-size"),
    "nothing like it": ("--zzz 1", "there is no option --zzz"),
    "wrong type": ("--data.batch-size many", "--data.batch-size is 'many': give a whole number"),
    "neither a number nor None": ("--optim.clip-norm none", "--optim.clip-norm is 'none': give a number or None"),
    "missing value": ("--data.batch-size", "--data.batch-size"),
    "misspelt choice": ("--gnp.r-schedule warm-up", "'warmup'"),
    "out of range": ("--gnp.r -1", "gnp.r is -1.0"),
    "fits the rest badly": ("--optim.warmup-steps 2000", "train.num_steps 1000"),
    "both strengths": ("--gnp.lam 0.1", "give one of them"),
    "stray word": ("fast", "fast"),
    "option of the command": ("--run_dir x", "did you mean --run-dir?"),
    "in capitals": ("--train.NUM-STEPS 5", "did you mean --train.num-steps?"),
    "value after a switch": ("--data.flip True", "write --data.flip, or --data.no-flip"),
    "a number after a switch": ("--data.flip 2", "write --data.flip, or --data.no-flip"),
    "value with a switch": ("--data.flip=false", "write --data.flip, or --data.no-flip"),
    "value after a switch that is off": ("--data.no-flip 1", "write --data.flip, or --data.no-flip"),
    "nothing after the equals sign": ("--gnp.alpha=", "--gnp.alpha is empty"),
    "not a number": ("--optim.eps nan", "optim.eps is nan: it must be a finite number"),
    "no number of steps": ("--train.num-steps 1e6", "--train.num-steps is '1e6': give a whole number"),
    "data in another store": ("--data.root hdfs://bucket/data", "mount the bucket"),
    "data in no bucket": ("--data.root gs://", "names no bucket"),
    "data in no bucket on S3": ("--data.root s3://", "names no bucket: write it as s3://bucket/folder"),
    "a path as data set": ("--data.name ../imagenet", "give the name of a folder in data.root"),
    "no share": ("--data.holdout 1", "data.holdout is 1.0: it must be at least 0 and below 1"),
    "an empty crop": ("--data.crop-area 0", "data.crop_area is 0.0: it must be above 0 and at most 1"),
    "no threads": ("--data.num-threads 0", "data.num_threads is 0: it must be at least 1"),
}


@pytest.mark.parametrize(("flags", "part"), WRONG_FLAGS.values(), ids=WRONG_FLAGS.keys())
def test_a_wrong_flag_is_one_line_that_says_what_to_change(flags, part):
    with pytest.raises(ConfigError) as error:
        recipe.override(Config(), flags.split(), others=("--run-dir", "--kernels"))
    message = str(error.value)
    assert part in message
    assert "\n" not in message
    assert "│" not in message


TOO_SHORT = {
    "learning rate": (
        Config(optim=OptimConfig(warmup_steps=100)),
        "train.num_steps 50 is too small for optim.warmup_steps 100: add --optim.warmup-steps N (at most 50), or",
        "--optim.warmup-steps 50",
    ),
    "penalty": (
        Config(gnp=GnpConfig(r_schedule="warmup", warmup_steps=51)),
        "for gnp.warmup_steps 51: add --gnp.warmup-steps N (at most 50), or raise --train.num-steps",
        "--gnp.warmup-steps 50",
    ),
    "window": (
        Config(gnp=GnpConfig(gate="window", gate_start=50)),
        "for gnp.gate_start 50: add --gnp.gate-start N (at most 49), or",
        "--gnp.gate-start 49",
    ),
    "zero warm-up": (
        Config(optim=OptimConfig(warmup_steps=60), gnp=GnpConfig(gate="window", gate_start=60)),
        "add --optim.warmup-steps N (at most 50) and --gnp.gate-start N (at most 49), or",
        "--optim.warmup-steps 10 --gnp.gate-start 10",
    ),
}


@pytest.mark.parametrize(("config", "part", "flags"), TOO_SHORT.values(), ids=TOO_SHORT)
def test_a_run_too_short_for_a_schedule_names_the_flags_to_add(config, part, flags):
    short = ["--train.num-steps", "50"]
    with pytest.raises(ConfigError) as error:
        recipe.override(config, short)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert recipe.override(config, [*short, *flags.split()]).train.num_steps == 50


def test_a_window_with_an_end_of_its_own_may_lie_behind_a_run():
    """Such run folders were made before this check existed."""
    window = Config(gnp=GnpConfig(gate="window", gate_start=60, gate_stop=70))
    assert recipe.override(window, ["--train.num-steps", "50"]).gnp == window.gnp


def test_flags_replace_values_and_nothing_else():
    flags = "--gnp.alpha None --gnp.lam 0.04 --data.flip --optim.step-boundaries 0.5 0.9 --data.batch_size 64"
    config = recipe.override(Config(), flags.split())
    assert config == Config(
        data=DataConfig(flip=True, batch_size=64),
        gnp=GnpConfig(alpha=None, lam=0.04),
        optim=OptimConfig(step_boundaries=(0.5, 0.9)),
    )


def test_without_flags_nothing_is_replaced():
    assert recipe.override(Config(), []) == Config()


def test_of_a_flag_that_is_given_twice_the_last_counts():
    """So a launch script can append what its user overrides."""
    flags = "--gnp.r 0.1 --data.flip --gnp.r 0.2 --data.no-flip"
    assert recipe.override(Config(), flags.split()) == Config(gnp=GnpConfig(r=0.2))


def test_a_home_folder_is_found_behind_an_equals_sign(monkeypatch):
    """There the shell does not expand the ~."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert recipe.override(Config(), ["--data.root=~/data"]).data.root == "/home/somebody/data"


@pytest.mark.parametrize(
    ("flags", "remat"),
    [
        ("--model.remat", "block"),
        ("--model.remat --data.flip", "block"),
        ("--model.no-remat", "none"),
        ("--model.remat dots", "dots"),
        ("--model.remat=offload", "offload"),
        ("--model.remat dots --model.remat", "block"),
    ],
)
def test_recomputation_was_a_switch(flags, remat):
    """Command lines of earlier versions mean what they meant."""
    assert recipe.override(Config(), flags.split()).model.remat == remat


@pytest.mark.parametrize(("stored", "remat"), [(True, "block"), (False, "none"), ("dots", "dots")])
def test_a_stored_switch_of_recomputation_is_read(stored, remat):
    sections = json.loads(recipe.to_json(Config()))
    sections["model"]["remat"] = stored
    assert recipe.from_json(json.dumps(sections)).model.remat == remat


FIELDS = [(section.name, field.name) for section in fields(Config) for field in fields(getattr(Config(), section.name))]
BAD_VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 10**40, "-1": -1, "list": [1], "word": "x"}
# A word may be a folder, a file, a split, or the name of a data set or a network; an axis of -1 takes the devices that
# the others leave.
WORDS = {("data", name) for name in ("root", "name", "train_split", "eval_split", "eval_labels")}
WORDS |= {("model", "name"), ("model", "init_from")}
ALLOWED = {(*field, "word") for field in WORDS} | {("mesh", "fsdp", "-1"), ("model", "head_bias", "-1")}


@pytest.mark.parametrize(("section", "name"), FIELDS, ids=lambda value: value)
@pytest.mark.parametrize("value", BAD_VALUES)
def test_no_option_takes_a_value_that_nobody_can_mean(section, name, value):
    """A new option is covered automatically: it refuses these values, or is listed as one that accepts them."""

    def build():
        old = getattr(Config(), section)
        Config(**{section: dataclasses.replace(old, **{name: BAD_VALUES[value]})})

    if section == "gnp" and value == "-1":
        return  # The ranges of the penalty are those of the method.
    if (section, name, value) in ALLOWED:
        build()
        return
    with pytest.raises(ConfigError) as error:
        build()
    assert "\n" not in str(error.value)


WRONG_VALUES = {
    "zero batch": (DataConfig, {"batch_size": 0}),
    "patterns without weights": (ModelConfig, {"init_allow": ("head.*",)}),
    "certain dropout": (ModelConfig, {"dropout": 1.0}),
    "no strength": (GnpConfig, {"alpha": None}),
    "warm-up without steps": (GnpConfig, {"r_schedule": "warmup"}),
    "steps without warm-up": (GnpConfig, {"warmup_steps": 5}),
    "steps that are not whole": (TrainConfig, {"num_steps": 100.0}),
    "a switch that is a number": (DataConfig, {"flip": 1}),
    "a number that is a switch": (DataConfig, {"batch_size": True}),
    "an unknown choice": (OptimConfig, {"schedule": "exponential"}),
    "a switch that is a word": (ModelConfig, {"remat": True}),
    "a list of boundaries": (OptimConfig, {"step_boundaries": [0.3, 0.6]}),
    "boundaries out of order": (OptimConfig, {"schedule": "step", "step_boundaries": (0.6, 0.3)}),
    "more steps than fit into memory": (TrainConfig, {"num_steps": 2**31 - 1}),
    "a border beyond all images": (DataConfig, {"crop_padding": 2**31 - 1}),
    "more blocks than anybody trains": (ModelConfig, {"depth": 2**31 - 1}),
    "more registers than anybody trains": (ModelConfig, {"num_registers": 2**31 - 1}),
    "smoothing everything": (TrainConfig, {"label_smoothing": 1.0}),
}


@pytest.mark.parametrize(("section", "values"), WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_impossible_values_are_refused(section, values):
    with pytest.raises(ConfigError):
        section(**values)


@given(
    st.builds(DataConfig, batch_size=st.integers(1, 10**6), flip=st.booleans()),
    st.builds(GnpConfig, r=st.floats(0, 1), alpha=st.floats(0, 1)),
)
def test_json_keeps_every_value(data, gnp):
    config = Config(data=data, gnp=gnp)
    assert recipe.from_json(recipe.to_json(config)) == config


@given(st.data())
def test_what_a_stored_configuration_does_not_have_is_as_it_was_before_there_was_such_an_option(data):
    """The default is used, for any option or section that was added later."""
    stored = json.loads(recipe.to_json(Config(train=TrainConfig(num_steps=7))))
    for section in data.draw(st.sets(st.sampled_from(sorted(stored)))):
        for key in data.draw(st.sets(st.sampled_from(sorted(stored[section])))) - {"num_steps"}:
            del stored[section][key]
        if not stored[section]:
            del stored[section]
    assert recipe.from_json(json.dumps(stored)) == Config(train=TrainConfig(num_steps=7))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"data": {"batch": 64}}', "it has data.batch = 64, which this version does not know"),
        ('{"fancy": {"x": 1, "y": "z"}}', "it has fancy.x = 1, fancy.y = 'z', which"),
        ('{"fancy": {}}', "it has fancy, which"),
        ('{"train": {"num_steps": "many"}}', "train.num_steps is 'many': it must be a whole number"),
        ('{"train": 3}', "does not fit this version"),
        ('{"model": {"remat": 1}}', "model.remat is 1: it must be one of 'none'"),
        ("[]", "does not fit this version"),
        ("{", "does not fit this version"),
    ],
)
def test_a_stored_configuration_that_this_version_cannot_mean_is_one_line(text, part):
    with pytest.raises(ConfigError, match="does not fit this version") as error:
        recipe.from_json(text)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("configs/digits.py", "file.py:function"),
        ("configs/nothing.py:run", "does not exist"),
        ("configs/digits.py:quikstart", "did you mean quickstart"),
        ("configs/digits.py:", "names no function"),
        ("some:folder/digits.py", "names no function"),
        ("gs://bucket/digits.py:quickstart", "mount the bucket"),
        ("configs:quickstart", "does not exist"),
    ],
)
def test_a_recipe_that_is_not_there_is_named(name, part):
    with pytest.raises(ConfigError, match=part):
        recipe.load(name)


def test_a_run_folder_refuses_another_run_but_not_another_machine(tmp_path):
    with claimed(tmp_path, Config()):
        pass
    elsewhere = recipe.override(Config(), ["--mesh.tensor", "2", "--checkpoint.keep-last", "5"])
    with claimed(tmp_path, elsewhere):
        assert stored_config(tmp_path) == elsewhere
    another = dataclasses.replace(Config(), gnp=GnpConfig(r=0.1))
    with pytest.raises(ConfigError, match=r"gnp.r 0.05 -> 0.1"), claimed(tmp_path, another):
        pass
    assert stored_config(tmp_path) == elsewhere


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        stored_config(tmp_path)
